// Runs the model's graphs, away from the page, so that this one never waits.
import * as ort from "./vendor/ort.js";

const OPTIONS = { extra: { session: { intra_op: { allow_spinning: "0" } } } }; // threads that wait leave the core to the page
/** @type {Record<string, ort.InferenceSession>} */
const graphs = {};
/** @type {Record<string, ort.Tensor>} */
let references = {};

/** @param {ArrayLike<number>} numbers @param {number[]} shape */
const tensor = (numbers, shape) => new ort.Tensor("float32", Float32Array.from(numbers), shape);

/** Pictures, all of one size, as a tensor [N,3,S,S] in [0,1]. @param {ImageData[]} pictures */
function tensorOf(pictures) {
  const { width, height } = pictures[0];
  const numbers = new Float32Array(pictures.length * 3 * width * height);
  let to = 0;
  for (const { data } of pictures) {
    for (let c = 0; c < 3; c++) for (let from = c; from < data.length; from += 4) numbers[to++] = data[from] / 255;
  }
  return tensor(numbers, [pictures.length, 3, height, width]);
}

/** @param {ort.InferenceSession.OnnxValueMapType} found @returns {Pose[]} */
function posesOf({ driving_value: value, driving_jacobian: jacobian }) {
  const [count, points] = value.dims;
  /** @param {ort.Tensor} whole @param {number} i @param {number} length */
  const part = (whole, i, length) => /** @type {Float32Array} */ (whole.data).slice(i * length, (i + 1) * length);
  return Array.from({ length: count }, (_, i) => ({ value: part(value, i, 2 * points), jacobian: part(jacobian, i, 4 * points) }));
}

/** @type {Tasks} */
const tasks = {
  async open(folder) {
    const [mjs, wasm] = ["./vendor/ort-threads.js", "./vendor/ort-threads.wasm"].map((path) => new URL(path, import.meta.url));
    ort.env.wasm.wasmPaths = { mjs, wasm };
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    const answer = await fetch(`${folder}/model.json`);
    if (!answer.ok) throw new Error(`The model can't be loaded (${answer.status}): reload the page.`);
    const model = await answer.json();
    for (const name of Object.keys(model.graphs)) graphs[name] = await ort.InferenceSession.create(`${folder}/${name}.onnx`, OPTIONS);
    return { ...model, threads: ort.env.wasm.numThreads };
  },

  poses: async (pictures) => posesOf(await graphs.keypoints.run({ image: tensorOf(pictures) })),

  async encode(pictures) {
    const image = tensorOf(pictures);
    const found = await graphs.keypoints.run({ image });
    const names = { reference_value: found.driving_value, reference_jacobian: found.driving_jacobian };
    references = { ...names, ...(await graphs.encoder.run({ image })) };
    return posesOf(found);
  },

  async draw({ pose: { value, jacobian }, fusion }) {
    const points = value.length / 2;
    const driving = { driving_value: tensor(value, [1, points, 2]), driving_jacobian: tensor(jacobian, [1, points, 2, 2]) };
    const { prediction, mask } = await graphs.blend.run({ ...driving, ...references, fusion: tensor(fusion, [fusion.length, 1]) });
    const [numbers, size] = [/** @type {Float32Array} */ (prediction.data), prediction.dims[3]];
    if (!numbers.every(Number.isFinite)) throw new Error("The picture isn't finite: start the motion anew, or choose other pictures.");
    const image = new ImageData(size, size);
    image.data.forEach((_, i) => (image.data[i] = i % 4 < 3 ? numbers[(i % 4) * size * size + (i >> 2)] * 255 : 255)); // rounds
    return { image, mask: /** @type {Float32Array} */ (mask.data), count: mask.dims[1] };
  },
};

onmessage = async ({ data: { id, task, argument } }) => {
  try {
    postMessage({ id, result: await tasks[/** @type {keyof Tasks} */ (task)](argument) });
  } catch (error) {
    postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
};
