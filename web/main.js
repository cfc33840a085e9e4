// Pictures of a face and what drives it in, the face on the stage out. Nothing leaves the browser.
import { chooseSquare } from "./crop.js";
import { startEngine } from "./engine.js";
import { closeVideo, openCamera, openClip, openPicture } from "./inputs.js";
import { findStart, relativeMotion, turned } from "./motion.js";
import { find, tell, tried } from "./page.js";
import { COLOURS, fit } from "./pixels.js";
import { putPicture, record, show } from "./stage.js";

const EXAMPLES = ["reference_front.png", "reference_left.png", "reference_right.png"];
const SLOW = 5; // frames a second
const REST = 300; // milliseconds
const ask = startEngine();
const sliders = ["yaw", "pitch", "roll"].map((axis) => find(axis, HTMLInputElement));
const [fusion, stage] = [find("fusion", HTMLSelectElement), find("stage", HTMLCanvasElement)];
const [beside, sources] = ["beside", "sources"].map((id) => find(id, HTMLInputElement));
/** @type {Model} */
let model;
/** @type {{picture: Picture, image: ImageData, pose: Pose}[]} */
let references = [];
/** @type {Promise<void>} */
let choosing = Promise.resolve(); // the references
/** @type {Picture | null} */
let driver = null; // a clip or the camera; null: the sliders
/** @type {{anchor: number, initial: Pose, distance: number} | null} */
let start = null; // of motion
/** @type {number[]} */
let times = []; // of the last frames, milliseconds
let [changes, opening, last] = [0, 0, ""]; // count what else changes the picture, and what was to drive; what was drawn last
let swaying = !matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A service worker brings the headers without which a page has one thread. They are there after a reload. */
async function isolate() {
  const worker = await navigator.serviceWorker?.register("sw.js").catch(() => null);
  if (!worker || crossOriginIsolated || window.top !== window || sessionStorage.getItem("reloaded")) return;
  sessionStorage.setItem("reloaded", "yes");
  await navigator.serviceWorker.ready;
  location.reload();
  await new Promise(() => {});
}

/** Let motion start anew. */
function restart() {
  [start, times, changes] = [null, [], changes + 1];
}

/** @param {string} name */
const example = async (name) => new File([await (await fetch(`examples/${name}`)).blob()], name);

/** Change the pictures of the face, one change after the other. @param {(chosen: Picture[]) => Picture[]} change */
const choose = (change) =>
  (choosing = choosing.catch(() => {}).then(() => setPictures(change(references.map(({ picture }) => picture)))));

/** Take pictures of the face. @param {Picture[]} pictures */
async function setPictures(pictures) {
  const most = model.max_references;
  if (pictures.length > most) throw new Error(`${pictures.length} pictures are too many: choose 1 to ${most} of one face.`);
  const images = pictures.map((picture) => fit(picture, model.size));
  const poses = pictures.length ? await ask("encode", images) : [];
  references = pictures.map((picture, i) => ({ picture, image: images[i], pose: poses[i] }));
  find("pictures", HTMLElement).replaceChildren(...references.map(thumbnail));
  tell(pictures.length ? "" : `Choose 1 to ${most} pictures of one face.`);
  restart();
}

/** @param {{picture: Picture, image: ImageData}} reference @param {number} index */
function thumbnail({ picture, image }, index) {
  const item = /** @type {HTMLElement} */ (find("thumbnail", HTMLTemplateElement).content.firstElementChild?.cloneNode(true));
  const [crop, remove] = item.querySelectorAll("button");
  putPicture(item.querySelector("canvas"), image);
  [crop.ariaLabel, remove.ariaLabel] = [`Crop ${picture.name}`, `Remove ${picture.name}`];
  [crop.id, crop.style.borderColor] = [`picture-${index}`, COLOURS[index]];
  crop.onclick = () => tried(async () => {
    picture.box = await chooseSquare(picture);
    await choose((chosen) => chosen);
    find(crop.id, HTMLButtonElement).focus(); // the one that is in its place
  });
  remove.onclick = () => tried(() => choose((chosen) => chosen.filter((each) => each !== picture)));
  return item;
}

/** Take files: pictures are added to those that were chosen, and replace the examples; a clip drives. @param {File[]} files */
async function take(files) {
  const clip = files.find((file) => file.type.startsWith("video/"));
  if (clip) await drive("clip", () => openClip(clip));
  const pictures = await Promise.all(files.filter((file) => file !== clip).map(openPicture));
  if (pictures.length) await choose((chosen) => [...chosen.filter(({ name }) => !EXAMPLES.includes(name)), ...pictures]);
}

/** Let a clip, the camera or the sliders drive. @param {string} kind @param {() => Promise<Picture>} open */
async function drive(kind, open) {
  if (driver) closeVideo(/** @type {HTMLVideoElement} */ (driver.image));
  driver = null;
  find("mouse", HTMLInputElement).checked = true; // until the other one is there
  restart();
  const mine = ++opening;
  if (kind === "mouse") return;
  tell(kind === "camera" ? "Waiting for the camera …" : "Opening the clip …");
  const opened = await open();
  const video = /** @type {HTMLVideoElement} */ (opened.image);
  if (mine !== opening) return closeVideo(video); // another was chosen meanwhile
  const again = () => ++changes && video.requestVideoFrameCallback(again);
  again();
  await video.play();
  driver = opened;
  find(kind, HTMLInputElement).checked = true;
  tell("");
}

/** The pose that drives, and the picture that has it. @returns {Promise<{pose: Pose, image: ImageData | null}>} */
async function driving() {
  if (!driver) return { pose: turned(model.turn, sliders.map((slider) => slider.valueAsNumber)), image: null };
  const image = fit(driver, model.size);
  return { pose: (await ask("poses", [image]))[0], image };
}

/**
 * Where motion starts: from the poses that are closest; with sliders, among all that they reach; in a clip, among those
 * that were shown; with the camera, from the first frame.
 * @param {Pose} pose
 */
function startFrom(pose) {
  const poses = driver ? [pose] : startFrom.angles.map((angles) => turned(model.turn, angles));
  if (start && (!driver || driver.name === "camera")) return start;
  const found = findStart(references.map((reference) => reference.pose), poses);
  if (!start || found.distance < start.distance) start = { ...found, initial: poses[found.frame] };
  return start;
}
startFrom.angles = [-40, -20, 0, 20, 40].flatMap((yaw) => [-20, 0, 20].map((pitch) => [yaw, pitch, 0]));

/** Draw, if there is something new; returns whether there was. */
async function step() {
  if (swaying && !driver) sway();
  const now = JSON.stringify([changes, fusion.value, beside.checked, sources.checked, sliders.map(({ value }) => value)]);
  if (now === last || !references.length) return false;
  last = now;
  const begun = performance.now();
  const { pose, image } = await driving();
  if (!references.length) return false; // they were removed meanwhile
  const { anchor, initial } = startFrom(pose);
  const reference = references[anchor];
  const shares = model.fusion.map((mode) => Number(mode === fusion.value));
  const drawn = await ask("draw", { pose: relativeMotion(reference.pose, pose, initial), fusion: shares });
  show(drawn, beside.checked ? (image ?? reference.image) : null, sources.checked);
  measure(begun);
  return true;
}

/** Show how many frames a second there are, since there was a rest. @param {number} begun when the last one was, milliseconds */
function measure(begun) {
  const now = performance.now();
  times = [...times.filter((time) => now - time < 5000 && begun - times[times.length - 1] < REST), now];
  const rate = (1000 * (times.length - 1)) / (now - times[0]);
  if (times.length < 3) return;
  find("rate", HTMLOutputElement).value = `${rate.toFixed(rate < 10 ? 1 : 0)} frames/s`;
  find("slow", HTMLElement).hidden = rate > SLOW;
}

/** The head turns by itself until somebody turns it. */
function sway() {
  [38, 10, 0].forEach((most, i) => (sliders[i].valueAsNumber = most * Math.sin(performance.now() / (1300 + 800 * i))));
}

/** Turn the head: near the middle by yaw and pitch, near the rim by roll. @param {PointerEvent} event */
function drag({ pointerId, movementX, movementY, offsetX, offsetY }) {
  if (driver || !stage.hasPointerCapture(pointerId)) return;
  const size = stage.clientHeight;
  const [x, y] = [(offsetX % size) / size - 0.5, offsetY / size - 0.5];
  const turn = Math.hypot(x, y) < 0.4 ? [movementX, -movementY, 0] : [0, 0, (x * movementY - y * movementX) * 2];
  sliders.forEach((slider, i) => (slider.valueAsNumber += (150 * turn[i]) / size));
}

/** Connect the page's elements. */
function connect() {
  for (const input of ["files", "clip-file"].map((id) => find(id, HTMLInputElement))) {
    input.onchange = () => tried(() => take([...(input.files ?? [])]).finally(() => (input.value = "")));
  }
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => (event.preventDefault(), tried(() => take([...(event.dataTransfer?.files ?? [])])));
  find("examples", HTMLButtonElement).onclick = () => tried(examples);
  find("mouse", HTMLInputElement).onchange = () => tried(() => drive("mouse", openCamera));
  find("clip", HTMLInputElement).onchange = () => tried(() => drive("clip", async () => openClip(await example("driving.mp4"))));
  find("camera", HTMLInputElement).onchange = () => tried(() => drive("camera", openCamera));
  find("restart", HTMLButtonElement).onclick = restart;
  find("straight", HTMLButtonElement).onclick = () => (swaying = false, sliders.forEach((slider) => (slider.value = "0")));
  find("crop-driving", HTMLButtonElement).onclick = () => tried(async () => driver && (driver.box = await chooseSquare(driver)));
  find("record", HTMLButtonElement).onclick = ({ target }) => tried(() => /** @type {HTMLElement} */ (target).ariaPressed = `${record()}`);
  sliders.forEach((slider) => (slider.oninput = () => (swaying = false)));
  stage.onpointerdown = ({ pointerId }) => (stage.setPointerCapture(pointerId), (swaying = false));
  stage.onpointermove = drag;
}

/** The pictures that come with the page. */
async function examples() {
  const pictures = await Promise.all(EXAMPLES.map(async (name) => openPicture(await example(name))));
  await choose(() => pictures);
}

await isolate();
await tried(async () => {
  tell("Loading the model …");
  model = await ask("open", new URL("model", document.baseURI).href);
  sliders.forEach((slider) => {
    const { angles } = model.turn[/** @type {Axis} */ (slider.id)];
    Object.assign(slider, { min: angles[0], max: angles[angles.length - 1], value: 0 });
  });
  fusion.replaceChildren(...model.fusion.map((mode) => new Option(mode, mode)));
  connect();
  await examples();
  find("threads", HTMLElement).textContent = `${model.size} × ${model.size} pixels, threads: ${model.threads}`;
});
for (;;) {
  let drawn = false;
  await tried(async () => (drawn = await step()));
  if (!drawn || document.hidden) await new Promise(requestAnimationFrame);
}
