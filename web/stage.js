// The pictures side by side on one canvas, and its recording.
import { find } from "./page.js";
import { maskPicture } from "./pixels.js";

const PANEL = 384; // pixels of each
const TYPES = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];
const stage = find("stage", HTMLCanvasElement);
const pen = /** @type {CanvasRenderingContext2D} */ (stage.getContext("2d"));
const small = document.createElement("canvas");
/** @type {MediaRecorder | null} */
let recorder = null;

/** Make a canvas show a picture. @param {HTMLCanvasElement | null} canvas @param {ImageData} image */
export function putPicture(canvas, image) {
  Object.assign(canvas ?? small, { width: image.width, height: image.height }).getContext("2d")?.putImageData(image, 0, 0);
}

/** @param {ImageData} image @param {number} panel @param {GlobalCompositeOperation} blend */
function paint(image, panel, blend = "source-over") {
  putPicture(small, image);
  Object.assign(pen, { globalCompositeOperation: blend, imageSmoothingQuality: "high" });
  pen.drawImage(small, panel * PANEL, 0, PANEL, PANEL);
}

/**
 * Show what was drawn; before it, what drives it; after it, who supplies what.
 * @param {Drawn} drawn @param {ImageData | null} driving @param {boolean} sources
 */
export function show(drawn, driving, sources) {
  const at = driving ? 1 : 0;
  const width = PANEL * (1 + at + Number(sources));
  if (stage.width !== width) stage.width = width;
  if (driving) paint(driving, 0);
  paint(drawn.image, at);
  if (sources) {
    paint(drawn.image, at + 1);
    paint(maskPicture(drawn), at + 1, "color");
  }
  Object.assign(pen, { globalCompositeOperation: "source-over", font: "18px sans-serif", fillStyle: "white" });
  pen.fillText("synthetic", at * PANEL + 8, PANEL - 8);
}

/** Begin to record, or end it and save the file; returns whether it records. */
export function record() {
  if (recorder?.state === "recording") return recorder.stop();
  const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type)) ?? "";
  recorder = new MediaRecorder(stage.captureStream(), { mimeType, videoBitsPerSecond: 4e6 });
  recorder.ondataavailable = ({ data }) => {
    const href = URL.createObjectURL(data);
    Object.assign(document.createElement("a"), { href, download: `synthetic.${mimeType.slice(6).split(";")[0]}` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60000); // by then it is saved
  };
  recorder.start();
  return true;
}
