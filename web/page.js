// What every part of the page needs.

/** @template {HTMLElement} T @param {string} id @param {new () => T} type @returns {T} */
export function find(id, type) {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`no ${type.name} #${id}`);
  return element;
}

/** Say something in the line for that. @param {string} text @param {boolean} bad */
export function tell(text, bad = false) {
  Object.assign(find("status", HTMLElement), { textContent: text, className: bad ? "bad" : "" });
}

/** Do something; what goes wrong is said. @param {() => unknown} action */
export const tried = (action) =>
  Promise.resolve().then(action).catch((error) => tell(error.message ?? String(error), true));
