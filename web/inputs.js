// Pictures, clips and the camera in; whatever is wrong with one becomes an Error of one clear line.

const MEGAPIXELS = 50;
const LARGEST = 2048; // pixels a side that are kept of a picture
const PATIENCE = 15000; // milliseconds

/** Wait for an event of a medium. @param {HTMLElement} medium @param {string} event @param {string} problem */
function happens(medium, event, problem) {
  return new Promise((resolve, reject) => {
    const fail = () => reject(new Error(problem));
    medium.addEventListener(event, resolve, { once: true });
    medium.addEventListener("error", fail, { once: true });
    setTimeout(fail, PATIENCE);
  });
}

/** @param {string} name @param {ImageBitmap | HTMLVideoElement} image @param {number} width @param {number} height @returns {Picture} */
function centred(name, image, width, height) {
  const side = Math.min(width, height);
  return { name, image, width, height, box: { x: (width - side) >> 1, y: (height - side) >> 1, side } };
}

/** A picture, upright. @param {File} file */
export async function openPicture(file) {
  const image = new Image();
  const problem = `${file.name}: not a picture that this browser can read; choose a PNG or JPEG file.`;
  image.src = URL.createObjectURL(file);
  await happens(image, "load", problem).finally(() => URL.revokeObjectURL(image.src));
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const megapixels = Math.round((width * height) / 1e6);
  if (megapixels > MEGAPIXELS) throw new Error(`${file.name}: ${megapixels} megapixels; make it ${MEGAPIXELS} or less.`);
  const scale = Math.min(1, LARGEST / Math.max(width, height));
  const size = scale < 1 && { resizeWidth: Math.round(width * scale), resizeHeight: Math.round(height * scale) };
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", resizeQuality: "high", ...size }).catch(() => null);
  if (!bitmap) throw new Error(problem);
  return centred(file.name, bitmap, bitmap.width, bitmap.height);
}

/** A clip, or what a camera shows. @param {string} name @param {Partial<HTMLVideoElement>} source */
async function openVideo(name, source) {
  const video = Object.assign(document.createElement("video"), { muted: true, loop: true, playsInline: true, ...source });
  const problem = `${name}: not a clip that this browser can play; choose an MP4 or WebM file.`;
  await happens(video, "loadeddata", problem);
  if (!video.videoWidth) throw new Error(`${name}: a clip without pictures; choose another.`);
  return centred(name, video, video.videoWidth, video.videoHeight);
}

/** @param {File} file */
export const openClip = (file) => openVideo(file.name, { src: URL.createObjectURL(file) });

/** The camera, if the person lets it. */
export async function openCamera() {
  if (!navigator.mediaDevices) throw new Error("The camera needs a page from https:// or from this computer.");
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", width: 640 } }).catch(({ name }) => {
    if (name === "NotAllowedError") throw new Error("The camera isn't allowed: allow it beside the page's address, or choose a clip.");
    throw new Error("No camera that can be used was found: choose a clip.");
  });
  return openVideo("camera", { srcObject: stream });
}

/** Let a clip or camera go. @param {HTMLVideoElement} video */
export function closeVideo(video) {
  video.pause();
  if (video.srcObject instanceof MediaStream) video.srcObject.getTracks().forEach((track) => track.stop());
  else URL.revokeObjectURL(video.src);
}
