// A bundle on Android or any JVM: one session, adapters as files, each call its own adapter. See docs/examples.md.
//
// On Android take the class as it is, with com.microsoft.onnxruntime:onnxruntime-android (adapters: 1.21 on). Tokens are the
// app's: `tokenizer.json` of the bundle says how they are made. Before the first line of it set ORT_DISABLE_TELEMETRY=1
// (docs/privacy.md): android.system.Os.setenv("ORT_DISABLE_TELEMETRY", "1", true).
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtLoraAdapter
import ai.onnxruntime.OrtSession
import java.io.File

/** Opens `graph` of a bundle, such as onnx/model_int8.onnx. Safe for threads: a run changes nothing. */
class Classifier(private val bundle: File, graph: String, threads: Int = 2) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = OrtSession.SessionOptions().use { options ->
        options.setIntraOpNumThreads(threads)
        options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR) // it warns of each slot, and a slot is meant to be one
        environment.createSession(File(bundle, graph).path, options)
    }
    private val adapters = HashMap<String, OrtLoraAdapter>()

    /** Logits, one row for each row of token ids; rows are padded to the longest. Without an adapter: the base's. */
    fun logits(rows: List<LongArray>, adapter: String? = null): Array<FloatArray> {
        val tokens = rows.maxOf { it.size }
        // `input_ids`, `attention_mask`, and of BERT `token_type_ids`, which are 0 for a single text.
        val feeds = session.inputNames.associateWith { name ->
            Array(rows.size) { row ->
                LongArray(tokens) { place ->
                    when {
                        place >= rows[row].size -> 0L
                        name == "input_ids" -> rows[row][place]
                        name == "attention_mask" -> 1L
                        else -> 0L
                    }
                }
            }
        }
        val tensors = feeds.mapValues { OnnxTensor.createTensor(environment, it.value) }
        try {
            OrtSession.RunOptions().use { options ->
                if (adapter != null) options.addActiveLoraAdapter(load(adapter))
                session.run(tensors, options).use { answer ->
                    @Suppress("UNCHECKED_CAST")
                    return answer[0].value as Array<FloatArray>
                }
            }
        } finally {
            tensors.values.forEach { it.close() }
        }
    }

    /** The adapter's file, mapped into memory once. Check its `sha256` of edgepeft.json where it came over a network. */
    @Synchronized
    private fun load(name: String): OrtLoraAdapter =
        adapters.getOrPut(name) { OrtLoraAdapter.create(File(bundle, "adapters/$name.onnx_adapter").absolutePath) }

    override fun close() {
        adapters.values.forEach { it.close() }
        session.close()
    }
}

/** `Classify BUNDLE GRAPH [ADAPTER]`: token ids on standard input, a row a line; logits on standard output. */
fun main(arguments: Array<String>) {
    val rows = generateSequence(::readlnOrNull).map { line -> line.trim().split(" ").map(String::toLong).toLongArray() }.toList()
    Classifier(File(arguments[0]), arguments[1]).use { classifier ->
        for (row in classifier.logits(rows, arguments.getOrNull(2))) println(row.joinToString(" "))
    }
}
