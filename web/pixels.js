// Pictures as numbers: fitted to the model's size as mrfomm/media/images.py does it, and masks in colour.

export const COLOURS = ["#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2", "#999999"];
const RGB = COLOURS.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));

/** What pixels are made of, as [first, weights]: areas when shrinking, else bilinear. @param {number} side @param {number} size */
function taps(side, size) {
  const reach = Math.max(side / size, 1);
  return Array.from({ length: size }, (_, i) => {
    const start = Math.min(Math.max((i + 0.5) * (side / size) - reach / 2, 0), side - reach);
    const first = Math.floor(start + 1e-6);
    const count = Math.ceil(start + reach - 1e-6) - first;
    const pixels = [...Array(count).keys()].map((j) => first + j);
    return { first, weights: pixels.map((j) => (Math.min(j + 1, start + reach) - Math.max(j, start)) / reach) };
  });
}

/** A square picture, resized. @param {ImageData} image @param {number} size */
export function resize({ data, width: side }, size) {
  const steps = taps(side, size);
  const across = new Float32Array(side * size * 3); // [side,size,3]
  for (let y = 0, to = 0; y < side; y++) {
    for (const { first, weights } of steps) {
      for (let c = 0; c < 3; c++, to++) {
        for (let j = 0, from = 4 * (y * side + first) + c; j < weights.length; j++, from += 4) across[to] += weights[j] * data[from];
      }
    }
  }
  const result = new ImageData(size, size);
  result.data.fill(255);
  for (let to = 0; to < size * size * 3; to++) {
    const { first, weights } = steps[Math.floor(to / (3 * size))];
    let sum = side === 2 * size ? 1e-3 : 0; // OpenCV rounds 1/2 up when it halves, else to even, as ImageData does
    const from = first * 3 * size + (to % (3 * size));
    for (let j = 0; j < weights.length; j++) sum += weights[j] * across[from + j * 3 * size];
    result.data[to + Math.floor(to / 3)] = sum;
  }
  return result;
}

/** Cut the square out of a picture and fit it to a size. @param {Picture} picture @param {number} size */
export function fit({ image, box: { x, y, side } }, size) {
  const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (fit.canvas.getContext("2d", { willReadFrequently: true }));
  if (pen.canvas.width !== side) pen.canvas.width = pen.canvas.height = side;
  pen.fillStyle = "white"; // below what is transparent
  pen.fillRect(0, 0, side, side);
  pen.drawImage(image, x, y, side, side, 0, 0, side, side);
  return resize(pen.getImageData(0, 0, side, side), size);
}
fit.canvas = new OffscreenCanvas(1, 1); // one for all frames

/** Which reference supplies what: their colours, by their shares. @param {Drawn} drawn */
export function maskPicture({ mask, count }) {
  const area = mask.length / count;
  const result = new ImageData(Math.sqrt(area), Math.sqrt(area));
  for (let i = 0; i < area; i++) {
    /** @param {number} c */
    const mixed = (c) => RGB.slice(0, count).reduce((sum, colour, k) => sum + mask[k * area + i] * colour[c], 0);
    result.data.set([mixed(0), mixed(1), mixed(2), 255], 4 * i);
  }
  return result;
}
