// Runs a classifier by onnxruntime-web in node: pictures from standard input, each as height and width (uint32, little
// endian) and RGB bytes; for each a line of JSON with its probabilities and familiarity.
import fs from "node:fs";
import { pathToFileURL } from "node:url";

const [runtime, wasm, model] = process.argv.slice(2);
const ort = await import(pathToFileURL(runtime));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = fs.readFileSync(wasm);
const session = await ort.InferenceSession.create(fs.readFileSync(model), { executionProviders: ["wasm"] });

function read(count) {
  const bytes = new Uint8Array(count);
  for (let at = 0; at < count; ) {
    const got = fs.readSync(0, bytes, at, count - at);
    if (!got) return null;
    at += got;
  }
  return bytes;
}

for (let head; (head = read(8)); ) {
  const [height, width] = new Uint32Array(head.buffer);
  const outputs = await session.run({ image: new ort.Tensor("uint8", read(height * width * 3), [height, width, 3]) });
  const familiarity = outputs.familiarity ? outputs.familiarity.data[0] : null;
  console.log(JSON.stringify({ probabilities: Array.from(outputs.probabilities.data), familiarity }));
  for (const tensor of Object.values(outputs)) tensor.dispose();
}
