"use strict";
(() => {
  const MAX_SHOWN = 200; // pictures on the page; older ones go
  const NUM_TOP = 5;
  const find = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text; // labels and file names may hold markup
    return element;
  };
  const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const waiting = new Map();
  let labels = [], worker, nextId = 1, numDone = 0, numAsked = 0;

  function fail(reason) {
    document.body.classList.add("loading");
    find("files").disabled = find("photograph").disabled = true;
    find("status").textContent = "";
    find("failure").textContent = `The classifier does not run. ${reason}`;
    find("failure").hidden = false;
  }

  function start() {
    document.body.classList.add("loading");
    if (location.protocol === "file:") {
      return fail("A browser opens it from a web server only. In this folder run: python -m http.server");
    }
    try {
      worker = new Worker("worker.js", { type: "module" });
    } catch {
      return fail("This browser is too old.");
    }
    worker.onerror = (event) => { event.preventDefault(); fail("This browser is too old, or a file of the page is missing."); };
    worker.onmessage = ({ data }) => {
      if (data.kind === "ready") return open(data);
      if (data.kind === "failure") return fail(data.reason);
      const name = waiting.get(data.id);
      if (!waiting.delete(data.id)) return;
      numDone++;
      show(data.kind === "result" ? makeResult(name, data) : makeRefusal(name, data.reason));
      const said = data.kind === "refused" ? "not classified" : data.unknown ? "perhaps none of these" : say(data.probabilities);
      const rest = waiting.size ? ` ${numDone} of ${numAsked} done.` : numAsked > 1 ? ` All ${numAsked} done.` : "";
      find("status").textContent = `${name}: ${said}.${rest}`;
      if (!waiting.size) numDone = numAsked = 0;
    };
    if ("serviceWorker" in navigator && window.isSecureContext) navigator.serviceWorker.register("offline.js").catch(() => {});
  }

  function open(settings) {
    labels = settings.labels;
    document.title = find("title").textContent = settings.title;
    const shown = labels.slice(0, 12).join(", ");
    find("classes").textContent = `${labels.length} classes: ${shown}${labels.length > 12 ? ", …" : ""}`;
    find("status").textContent = "Ready.";
    document.body.classList.remove("loading");
    find("files").disabled = find("photograph").disabled = false;
    document.documentElement.dataset.threads = settings.threads;
  }

  const say = (probabilities) => {
    const best = probabilities.indexOf(Math.max(...probabilities));
    return `${labels[best]}, ${percent.format(probabilities[best])}`;
  };

  function ask(files) {
    if (!files.length || find("files").disabled) return;
    for (const file of files) {
      waiting.set(nextId, file.name || "picture");
      worker.postMessage({ id: nextId++, file });
      numAsked++;
    }
    find("status").textContent = `${numDone} of ${numAsked} done …`;
  }

  function show(item) {
    const list = find("results");
    list.prepend(item);
    while (list.children.length > MAX_SHOWN) remove(list.lastElementChild);
    find("clear").hidden = false;
  }

  function remove(item) {
    const image = item.querySelector("img");
    if (image) URL.revokeObjectURL(image.src);
    item.remove();
  }

  function makeResult(name, { probabilities, familiarity, unknown, thumbnail, duration_ms }) {
    const item = make("li", unknown ? "unknown" : "");
    item.dataset.name = name;
    item.dataset.outcome = JSON.stringify({ probabilities, familiarity, duration_ms });
    const image = make("img");
    image.alt = "";
    image.src = URL.createObjectURL(thumbnail);
    const says = make("div", "says");
    const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, NUM_TOP);
    says.append(make("h2", "", unknown ? "None of these?" : labels[order[0]]));
    says.append(make("p", "muted", name));
    if (unknown) {
      says.append(make("p", "muted", `Unlike what it was trained on (familiarity ${percent.format(familiarity)}). If it is one of them:`));
    }
    const classes = make("ul", "classes");
    for (const i of order) {
      const line = make("div", "line");
      line.append(make("span", "", labels[i]), make("span", "", percent.format(probabilities[i])));
      const track = make("div", "track"), fill = make("div");
      track.setAttribute("aria-hidden", "true");
      fill.style.width = `${100 * probabilities[i]}%`;
      track.append(fill);
      const entry = make("li");
      entry.append(line, track);
      classes.append(entry);
    }
    says.append(classes);
    item.append(image, says);
    return item;
  }

  function makeRefusal(name, reason) {
    const item = make("li", "failed");
    item.dataset.name = name;
    const says = make("div", "says");
    says.append(make("h2", "", "Not classified"), make("p", "muted", name), make("p", "", reason));
    item.append(says);
    return item;
  }

  find("files").addEventListener("change", (event) => {
    ask([...event.target.files]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  find("clear").addEventListener("click", () => {
    for (const item of [...find("results").children]) remove(item);
    find("clear").hidden = true;
    find("status").textContent = "Ready.";
    find("files").focus();
  });
  document.addEventListener("paste", (event) => ask([...event.clipboardData.files]));
  // Anywhere on the page: a picture dropped beside the frame would otherwise replace the page.
  document.addEventListener("dragover", (event) => { event.preventDefault(); find("chooser").classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) find("chooser").classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    find("chooser").classList.remove("over");
    ask([...event.dataTransfer.files]);
  });

  // The camera
  const camera = find("camera"), viewfinder = find("viewfinder");
  find("photograph").hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
  find("photograph").addEventListener("click", async () => {
    find("camera-failure").hidden = true;
    find("shoot").disabled = true;
    camera.showModal();
    try {
      const wanted = { video: { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } } };
      const stream = await navigator.mediaDevices.getUserMedia(wanted);
      viewfinder.srcObject = stream;
      if (!camera.open) return stopCamera();
      await viewfinder.play();
      find("shoot").disabled = false;
    } catch (error) {
      find("camera-failure").textContent = error.name === "NotAllowedError"
        ? "The browser does not allow the camera. Allow it in the settings of this page."
        : "There is no camera that can be used.";
      find("camera-failure").hidden = false;
    }
  });
  function stopCamera() {
    for (const track of viewfinder.srcObject ? viewfinder.srcObject.getTracks() : []) track.stop();
    viewfinder.srcObject = null;
  }
  find("close-camera").addEventListener("click", () => camera.close());
  camera.addEventListener("close", stopCamera);
  find("shoot").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = viewfinder.videoWidth;
    canvas.height = viewfinder.videoHeight;
    canvas.getContext("2d").drawImage(viewfinder, 0, 0);
    canvas.toBlob((blob) => {
      ask([new File([blob], `photograph ${new Date().toLocaleTimeString()}`, { type: "image/png" })]);
      camera.close();
    }, "image/png");
  });

  start();
})();
