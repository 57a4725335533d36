/** `node run.mjs FOLDER < [{task, dtype, texts | prompt}]`: what transformers.js makes of the bundle in FOLDER, as JSON. */

import { basename, dirname } from "node:path";
import { text } from "node:stream/consumers";

import { AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, env } from "@huggingface/transformers";

const folder = process.argv[2] ?? "";
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = dirname(folder);
const name = basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const answers = [];
for (const { task, dtype, texts, prompt } of JSON.parse(await text(process.stdin))) {
  const kind = task === "text-generation" ? AutoModelForCausalLM : AutoModelForSequenceClassification;
  const model = await kind.from_pretrained(name, { dtype, device: "cpu" });
  if (task === "text-generation") {
    const inputs = tokenizer(prompt);
    const { logits } = await model(inputs);
    const [row] = (await model.generate({ ...inputs, max_new_tokens: 12, do_sample: false })).tolist();
    answers.push({ tokens: row.map(Number).slice(inputs.input_ids.dims[1]), last: logits.tolist()[0].at(-1), from: logits.dims });
  } else {
    const { logits } = await model(tokenizer(texts, { padding: true, truncation: true }));
    answers.push({ logits: logits.tolist() });
  }
  await model.dispose();
}
process.stdout.write(JSON.stringify(answers));
