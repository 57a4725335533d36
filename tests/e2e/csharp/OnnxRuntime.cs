// What examples/csharp uses of ONNX Runtime's C# binding, to compile the example with mono's compiler, which does not take the
// binding's own newer C# (`unmanaged` is `struct` here). tests/e2e/test_csharp.py looks each public line up in the binding's source.
using System;
using System.Collections;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace Microsoft.ML.OnnxRuntime
{
    public enum OrtLoggingLevel
    {
        ORT_LOGGING_LEVEL_ERROR = 3,
    }

    public class NodeMetadata { }

    public class OrtAllocator : SafeHandle
    {
        internal OrtAllocator() : base(IntPtr.Zero, true) { }
        public override bool IsInvalid { get { return true; } }
        protected override bool ReleaseHandle() { return true; }
    }

    public class OrtLoraAdapter : SafeHandle
    {
        internal OrtLoraAdapter() : base(IntPtr.Zero, true) { }
        public static OrtLoraAdapter Create(string adapterPath, OrtAllocator ortAllocator) { throw new NotSupportedException(); }
        public override bool IsInvalid { get { return true; } }
        protected override bool ReleaseHandle() { return true; }
    }

    public class SessionOptions : SafeHandle
    {
        public SessionOptions() : base(IntPtr.Zero, true) { }
        public OrtLoggingLevel LogSeverityLevel { get; set; }
        public int IntraOpNumThreads { get; set; }
        public override bool IsInvalid { get { return true; } }
        protected override bool ReleaseHandle() { return true; }
    }

    public class RunOptions : SafeHandle
    {
        public RunOptions() : base(IntPtr.Zero, true) { }
        public void AddActiveLoraAdapter(OrtLoraAdapter loraAdapter) { }
        public override bool IsInvalid { get { return true; } }
        protected override bool ReleaseHandle() { return true; }
    }

    public interface IDisposableReadOnlyCollection<T> : IReadOnlyCollection<T>, IReadOnlyList<T>, IDisposable { }

    public class OrtValue : IDisposable
    {
        public static OrtValue CreateTensorValueFromMemory<T>(T[] data, long[] shape) where T : struct { throw new NotSupportedException(); }
        public ReadOnlySpan<T> GetTensorDataAsSpan<T>() where T : struct { throw new NotSupportedException(); }
        public void Dispose() { }
    }

    public class InferenceSession : IDisposable
    {
        public InferenceSession(string modelPath, SessionOptions options) { }
        public IReadOnlyDictionary<string, NodeMetadata> InputMetadata { get { throw new NotSupportedException(); } }
        public IDisposableReadOnlyCollection<OrtValue> Run(RunOptions runOptions, IReadOnlyCollection<string> inputNames,
            IReadOnlyCollection<OrtValue> inputValues, IReadOnlyCollection<string> outputNames) { throw new NotSupportedException(); }
        public void Dispose() { }
    }
}
