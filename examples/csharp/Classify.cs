// A bundle in C#: one session, adapters as files, each call its own adapter. See docs/examples.md.
// Package: Microsoft.ML.OnnxRuntime, 1.21 or newer. Tokens are the app's: `tokenizer.json` of the bundle says how they are made.
// Set ORT_DISABLE_TELEMETRY=1 in the environment of the process (docs/privacy.md).
using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using Microsoft.ML.OnnxRuntime;

/// <summary>Opens a graph of a bundle, such as onnx/model_int8.onnx.</summary>
public sealed class Classifier : IDisposable
{
    private readonly string bundle;
    private readonly InferenceSession session;
    private readonly Dictionary<string, OrtLoraAdapter> adapters = new Dictionary<string, OrtLoraAdapter>();

    public Classifier(string bundle, string graph, int threads = 2)
    {
        this.bundle = bundle;
        using (var options = new SessionOptions { IntraOpNumThreads = threads, LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR })
            session = new InferenceSession(Path.Combine(bundle, graph), options);
    }

    /// <summary>Logits, one row for each row of token ids; rows are padded to the longest. Without an adapter: the base's.</summary>
    public float[][] Logits(IReadOnlyList<long[]> rows, string adapter = null)
    {
        int tokens = rows.Max(row => row.Length);
        var shape = new long[] { rows.Count, tokens };
        string[] names = session.InputMetadata.Keys.ToArray();
        var values = new List<OrtValue>();
        try
        {
            foreach (string name in names)
            {
                // `input_ids`, `attention_mask`, and of BERT `token_type_ids`, which are 0 for a single text.
                var data = new long[rows.Count * tokens];
                for (int row = 0; row < rows.Count; row++)
                    for (int place = 0; place < rows[row].Length; place++)
                        data[row * tokens + place] = name == "input_ids" ? rows[row][place] : name == "attention_mask" ? 1 : 0;
                values.Add(OrtValue.CreateTensorValueFromMemory(data, shape));
            }
            using (var run = new RunOptions())
            {
                if (adapter != null) run.AddActiveLoraAdapter(Load(adapter));
                using (var outputs = session.Run(run, names, values, new[] { "logits" }))
                {
                    float[] flat = outputs[0].GetTensorDataAsSpan<float>().ToArray();
                    int labels = flat.Length / rows.Count;
                    return Enumerable.Range(0, rows.Count).Select(row => flat.Skip(row * labels).Take(labels).ToArray()).ToArray();
                }
            }
        }
        finally
        {
            values.ForEach(value => value.Dispose());
        }
    }

    /// <summary>The adapter's file, mapped once. Check its `sha256` of edgepeft.json where it came over a network.</summary>
    private OrtLoraAdapter Load(string name)
    {
        lock (adapters)
        {
            if (!adapters.TryGetValue(name, out OrtLoraAdapter loaded))
                adapters[name] = loaded = OrtLoraAdapter.Create(Path.Combine(bundle, "adapters", name + ".onnx_adapter"), null);
            return loaded;
        }
    }

    public void Dispose()
    {
        foreach (OrtLoraAdapter adapter in adapters.Values) adapter.Dispose();
        session.Dispose();
    }
}

/// <summary>Classify BUNDLE GRAPH [ADAPTER]: token ids on standard input, a row a line; logits on standard output.</summary>
public static class Program
{
    public static void Main(string[] arguments)
    {
        var rows = new List<long[]>();
        for (string line = Console.ReadLine(); line != null; line = Console.ReadLine())
            rows.Add(line.Trim().Split(' ').Select(text => long.Parse(text, CultureInfo.InvariantCulture)).ToArray());
        using (var classifier = new Classifier(arguments[0], arguments[1]))
            foreach (float[] row in classifier.Logits(rows, arguments.Length > 2 ? arguments[2] : null))
                Console.WriteLine(string.Join(" ", row.Select(value => value.ToString("R", CultureInfo.InvariantCulture))));
    }
}
