// Lets the page use several threads on any static host, and work offline once it was open: every answer gets the two
// headers of cross-origin isolation, and is kept for when there is no network. Nothing may be asked of another host.
const HEADERS = {
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
  "content-security-policy": "default-src 'self' blob:; script-src 'self' 'wasm-unsafe-eval'; form-action 'none'",
};
const worker = /** @type {any} */ (self); // TypeScript takes it for a window

/** @param {Request} request */
async function answer(request) {
  const kept = await caches.open("mrfomm");
  const got = await fetch(request).catch(() => kept.match(request));
  if (!got) return Response.error();
  if (got.status === 200) kept.put(request, got.clone()).catch(() => {}); // a full disk only takes offline use away
  return new Response(got.body, { status: got.status, headers: { ...Object.fromEntries(got.headers), ...HEADERS } });
}

worker.oninstall = () => worker.skipWaiting();
worker.onactivate = (/** @type {any} */ event) => event.waitUntil(worker.clients.claim());
worker.onfetch = (/** @type {any} */ event) => {
  const { method, url } = event.request;
  if (method === "GET" && new URL(url).origin === location.origin) event.respondWith(answer(event.request));
};
