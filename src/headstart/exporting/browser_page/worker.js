// The classifier, away from the page so that the page never stands still: decoding, onnxruntime-web, its check.
import * as ort from "./onnxruntime-web.js";

const MAX_FILE_BYTES = 64 * 2 ** 20;
const MAX_PIXELS = 64e6;
const STRIP_ROWS = 64; // rows of the reduced picture that are read at once, so that memory stays small
const THUMBNAIL_PX = 240;
let settings, session;

async function open() {
  settings = await (await load("settings.json")).json();
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.wasmPaths = { wasm: new URL("onnxruntime-web.wasm", import.meta.url).href };
  const model = new Uint8Array(await (await load("model.onnx")).arrayBuffer());
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  await check();
  const { labels, title } = settings;
  postMessage({ kind: "ready", labels, title, threads: ort.env.wasm.numThreads });
}

async function load(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name} is not there (HTTP ${answer.status}).`);
  return answer;
}

// One known picture: whether this browser computes what headstart computed when the page was made.
async function check() {
  const { height, width, probabilities, familiarity } = settings.check;
  const pixels = new Uint8Array(height * width * 3);
  for (let i = 0; i < pixels.length; i++) pixels[i] = (i * i * 31 + i * 7) % 251;
  const found = await run({ pixels, height, width });
  const differences = found.probabilities.map((value, i) => Math.abs(value - probabilities[i]));
  if (familiarity !== null) differences.push(Math.abs(found.familiarity - familiarity));
  const worst = Math.max(...differences);
  if (!(worst <= settings.check.tolerance)) {
    throw new Error(
      `This browser computes other probabilities than it should: off by ${worst.toFixed(3)}. Try another browser.`);
  }
}

async function run({ pixels, height, width }) {
  const image = new ort.Tensor("uint8", pixels, [height, width, 3]);
  const outputs = await session.run({ image });
  const probabilities = Array.from(outputs.probabilities.data);
  const familiarity = outputs.familiarity ? outputs.familiarity.data[0] : null;
  for (const tensor of Object.values(outputs)) tensor.dispose();
  return { probabilities, familiarity };
}

// Upright RGB on white, without colour management, as headstart decodes. A large picture is reduced by whole pixels
// where headstart lets the JPEG decoder do so: each pixel is the mean of 2 x 2, 4 x 4 or 8 x 8.
function readPixels(bitmap) {
  const shortSide = Math.min(bitmap.width, bitmap.height);
  const enough = settings.min_side_px || Infinity;
  const factor = [8, 4, 2].find((each) => Math.floor(shortSide / enough) >= each) || 1;
  const width = Math.ceil(bitmap.width / factor);
  const height = Math.ceil(bitmap.height / factor);
  const pixels = new Uint8Array(width * height * 3);
  const canvas = new OffscreenCanvas(bitmap.width, Math.min(bitmap.height, STRIP_ROWS * factor));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  for (let top = 0; top < bitmap.height; top += canvas.height) {
    const rows = Math.min(canvas.height, bitmap.height - top);
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, -top);
    const strip = context.getImageData(0, 0, canvas.width, rows).data;
    reduce(strip, canvas.width, rows, factor, pixels, (top / factor) * width * 3);
  }
  return { pixels, height, width };
}

function reduce(rgba, width, height, factor, rgb, at) {
  if (factor === 1) {
    for (let i = 0; i < rgba.length; i += 4) {
      rgb[at++] = rgba[i];
      rgb[at++] = rgba[i + 1];
      rgb[at++] = rgba[i + 2];
    }
    return;
  }
  for (let top = 0; top < height; top += factor) {
    const bottom = Math.min(top + factor, height);
    for (let left = 0; left < width; left += factor) {
      const right = Math.min(left + factor, width);
      let red = 0, green = 0, blue = 0;
      for (let y = top; y < bottom; y++) {
        for (let i = (y * width + left) * 4, end = (y * width + right) * 4; i < end; i += 4) {
          red += rgba[i];
          green += rgba[i + 1];
          blue += rgba[i + 2];
        }
      }
      const count = (bottom - top) * (right - left);
      rgb[at++] = (red + count / 2) / count;
      rgb[at++] = (green + count / 2) / count;
      rgb[at++] = (blue + count / 2) / count;
    }
  }
}

async function makeThumbnail(bitmap) {
  const scale = Math.min(1, THUMBNAIL_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(
    Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 });
}

async function classify(file) {
  if (file.size > MAX_FILE_BYTES) throw new Error("It has more than 64 MB.");
  let bitmap;
  try {
    bitmap = await createImageBitmap(
      file, { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new Error("This browser cannot read it as a picture.");
  }
  try {
    if (bitmap.width * bitmap.height > MAX_PIXELS) throw new Error("It has more than 64 megapixels.");
    const start = performance.now();
    const read = readPixels(bitmap);
    const found = await run(read);
    const unknown = found.familiarity !== null && found.familiarity < settings.unknown_below;
    const duration_ms = performance.now() - start;
    return { ...found, unknown, duration_ms, thumbnail: await makeThumbnail(bitmap) };
  } finally {
    bitmap.close();
  }
}

const opened = open();
opened.catch((error) => postMessage({ kind: "failure", reason: String(error.message || error) }));
let last = opened; // one picture after the other
self.onmessage = ({ data: { id, file } }) => {
  last = last.then(() => classify(file)).then(
    (outcome) => postMessage({ kind: "result", id, ...outcome }),
    (error) => postMessage({ kind: "refused", id, reason: String(error.message || error) }));
};
