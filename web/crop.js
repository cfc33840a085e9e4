// A square to drag over a picture, or to move by arrow keys.
import { find } from "./page.js";

/** @type {Record<string, number[]>} */
const PACES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Ask for the square of a picture to take; the one before if it is left. @param {Picture} picture @returns {Promise<Square>} */
export function chooseSquare({ image, width, height, box }) {
  const [dialog, view] = [find("crop", HTMLDialogElement), find("crop-view", HTMLCanvasElement)];
  const [square, size] = [find("crop-square", HTMLElement), find("crop-size", HTMLInputElement)];
  Object.assign(view, { width, height });
  dialog.style.setProperty("--ratio", `${width / height}`);
  view.getContext("2d")?.drawImage(image, 0, 0, width, height);
  let { x, y, side } = box;

  /** Move by so many pixels, as far as the picture reaches. @param {number} right @param {number} down */
  const move = (right = 0, down = 0) => {
    x = Math.max(0, Math.min(width - side, x + right));
    y = Math.max(0, Math.min(height - side, y + down));
    const [left, top, w, h] = [x / width, y / height, side / width, side / height].map((part) => `${100 * part}%`);
    Object.assign(square.style, { left, top, width: w, height: h });
  };
  size.valueAsNumber = (100 * side) / Math.min(width, height);
  size.oninput = () => {
    const before = side;
    side = Math.round((Math.min(width, height) * size.valueAsNumber) / 100);
    move((before - side) / 2, (before - side) / 2);
  };
  square.onpointerdown = ({ pointerId }) => square.setPointerCapture(pointerId);
  square.onpointermove = ({ pointerId, movementX, movementY }) => {
    if (square.hasPointerCapture(pointerId)) move(...[movementX, movementY].map((each) => (each * width) / view.clientWidth));
  };
  square.onkeydown = (event) => {
    const pace = PACES[event.key];
    if (!pace) return;
    event.preventDefault(); // no scrolling
    move((pace[0] * width) / 50, (pace[1] * width) / 50);
  };
  move();
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "done" ? { x: Math.round(x), y: Math.round(y), side } : box);
  });
}
