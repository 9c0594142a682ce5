// Networks run here, so that the page stays responsive. One request of a section at a time: a newer one takes its place.
import * as ort from "./ort/ort.wasm.min.mjs";
import { BFN, GPFN, draw, guided } from "./proximal.js";

ort.env.wasm.numThreads = 1; // several would need headers that few hosts send
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

const known = fetch(new URL("./models/models.json", import.meta.url)).then((answer) => answer.json());
const networks = new Map();

/** Load a model once: what it is, and its network as a function. */
function network(name) {
  if (!networks.has(name)) networks.set(name, load(name));
  return networks.get(name);
}

async function load(name) {
  // The graphs are simplified already, and to do it again would take longer than the first picture.
  const file = new URL(`./models/${name}.onnx`, import.meta.url).href;
  const session = await ort.InferenceSession.create(file, { graphOptimizationLevel: "disabled" });
  const model = (await known)[name];
  const predict = async (mean, t, labels) => {
    const size = model.data.shape.reduce((a, b) => a * b);
    const number = mean.length / size;
    const feeds = {
      mean: new ort.Tensor("float32", mean, [number, ...model.data.shape]),
      t: new ort.Tensor("float32", new Float32Array(number).fill(t), [number]),
    };
    if (session.inputNames.includes("label")) {
      const given = BigInt64Array.from(labels ?? new Array(number).fill(-1), BigInt);
      feeds.label = new ort.Tensor("int64", given, [number]);
    }
    if (session.inputNames.includes("guidance")) { // read by the network; NaN is none
      feeds.guidance = new ort.Tensor("float32", new Float32Array(3 * number).fill(NaN), [number, 3]);
    }
    const { target_mean: target } = await session.run(feeds);
    return target.data;
  };
  return { model, predict };
}

const newest = new Map();
let queue = Promise.resolve();

self.onmessage = ({ data }) => {
  newest.set(data.section, data.id);
  queue = queue.then(() => serve(data));
};

async function serve({ id, section, request }) {
  const stale = () => newest.get(section) !== id;
  try {
    if (stale()) return;
    const { model, predict } = await network(request.model);
    const { schedule, endpoints } = model.flow;
    const flow = request.flow === "bfn" ? new BFN(schedule.final) : new GPFN(schedule.final, endpoints.target_std);
    const size = model.data.shape.reduce((a, b) => a * b);
    for await (const step of draw({ ...request, flow, size, predict: guided(predict, request.weight ?? 1) })) {
      self.postMessage({ id, section, step });
      // Let messages in, so that a newer request is seen.
      await new Promise((resolve) => setTimeout(resolve));
      if (stale()) return;
    }
    self.postMessage({ id, section, done: true });
  } catch (error) {
    self.postMessage({ id, section, error: String(error?.message ?? error) });
  }
}

network("mnist").catch(() => {}); // the smallest, at once; whoever asks for it hears of an error
