// Keeps the files of the page, so that it opens without a network too. A page that was made anew has another VERSION;
// the browser goes over to it when no tab shows the earlier one.
const VERSION = "@VERSION@";
const FILES = [
  "./", "page.css", "page.js", "worker.js", "settings.json", "model.onnx", "onnxruntime-web.js", "onnxruntime-web.wasm",
];
const PREFIX = `headstart ${self.registration.scope} `; // one origin may have several such pages
const CACHE = PREFIX + VERSION;

self.addEventListener("install", (event) => {
  const fresh = FILES.map((name) => new Request(name, { cache: "no-cache" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(fresh)));
});
self.addEventListener("activate", (event) => {
  event.waitUntil(caches.keys().then((names) => Promise.all(
    names.filter((name) => name.startsWith(PREFIX) && name !== CACHE).map((name) => caches.delete(name)))));
});
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET") return;
  const wanted = request.mode === "navigate" ? "./" : request;
  event.respondWith(caches.open(CACHE).then((cache) => cache.match(wanted)).then((kept) => kept || fetch(request)));
});
