// The page's side of worker.js.

/** Start the worker: what it is asked for are promises. @returns {Ask} */
export function startEngine() {
  const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  /** @type {Map<number, {resolve: (result: any) => void, reject: (error: Error) => void}>} */
  const waiting = new Map();
  worker.onmessage = ({ data: { id, result, error } }) => {
    if (error === undefined) waiting.get(id)?.resolve(result);
    else waiting.get(id)?.reject(new Error(error));
    waiting.delete(id);
  };
  worker.onerror = () => waiting.forEach(({ reject }) => reject(new Error("The model's code can't be loaded: reload the page.")));
  let count = 0;
  return (task, argument) => {
    worker.postMessage({ id: ++count, task, argument });
    return /** @type {any} */ (new Promise((resolve, reject) => waiting.set(count, { resolve, reject })));
  };
}
