// SPDX-License-Identifier: Apache-2.0
"use strict";
const get = (id) => document.getElementById(id);
const NAMES = {
  "ct.nii.gz": "CT (NIfTI)", "dicom.zip": "CT (DICOM)", "sigma.nii.gz": "Standard deviation (NIfTI)",
  "ct.json": "What was assumed and measured (JSON)", "ct.png": "Picture", "report": "Report page (HTML)",
};
let files = [], job = null;

const authorized = () => {
  const token = get("token").value.trim();
  return token ? { Authorization: `Bearer ${token}` } : {};
};
const ask = async (path, options = {}) => {
  const answer = await fetch(path, { ...options, headers: authorized() });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `the service answered ${answer.status}`);
  }
  return answer;
};
const tell = (text, isError = false) => {
  get("job").hidden = false;
  get("state").textContent = text;
  get("state").className = isError ? "error" : "";
};

const guess = (name) => /(^|[-_. ])(lat|lateral|ll|rl)([-_. ]|$)/i.test(name);
const choose = (list) => {
  files = [...list];
  const isZip = files.length === 1 && /\.zip$/i.test(files[0].name);
  const isPair = files.length === 2;
  get("send").disabled = !(isZip || isPair);
  get("chosen").hidden = !isPair;
  get("views").replaceChildren();
  if (!isPair && !isZip) return tell("Two X-rays or one zip are needed.", true);
  get("job").hidden = true;
  if (!isPair) return undefined;
  const lateral = guess(files[0].name) && !guess(files[1].name) ? 0 : 1;
  files.forEach((file, index) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "lateral", value: index, checked: index === lateral });
    label.append(input, ` ${file.name} is the lateral`);
    get("views").append(label);
  });
  return undefined;
};

const drop = get("drop");
get("files").addEventListener("change", (event) => choose(event.target.files));
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files);
  });
}

const body = () => {
  const form = new FormData(), options = {};
  if (files.length === 1) form.append("study", files[0], "study.zip");
  else {
    const lateral = Number(document.querySelector("input[name=lateral]:checked").value);
    form.append("pa", files[1 - lateral], "pa");
    form.append("lateral", files[lateral], "lateral");
  }
  if (get("intensities").value) options.intensities = get("intensities").value;
  if (get("trust").value) options.trust = get("trust").value;
  if (get("field").value) options.field_of_view = Number(get("field").value);
  form.append("options", JSON.stringify(options));
  return form;
};

const show = async (path) => {
  get("report").srcdoc = await (await ask(path)).text();
  get("report").hidden = false;
  get("state").scrollIntoView();
};
const save = async (name, path) => {
  const place = URL.createObjectURL(await (await ask(path)).blob());
  const link = document.createElement("a");
  Object.assign(link, { href: place, download: name === "report" ? "ct.html" : name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(place), 10000);
};
const list = (links) => {
  get("results").replaceChildren();
  for (const [name, path] of Object.entries(links)) {
    if (name === "self") continue;
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = NAMES[name] || name;
    button.addEventListener("click", () => save(name, path).catch((error) => tell(error.message, true)));
    item.append(button);
    get("results").append(item);
  }
};

const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const follow = async (mine) => {
  const bar = get("bar");
  bar.hidden = false;
  while (job === mine) {
    let told;
    try {
      told = await (await ask(`/jobs/${mine}`)).json();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      tell("The service does not answer; asking again.");
      await wait(3);
      continue;
    }
    if (told.state === "queued") { bar.removeAttribute("value"); tell(`Waiting, ${told.before} before it.`); }
    if (told.state === "running") {
      const seconds = Math.max(0, Date.now() / 1000 - told.started);
      if (told.mean_seconds) bar.value = Math.min(0.97, seconds / told.mean_seconds);
      else bar.removeAttribute("value");
      tell(`Reconstructing for ${seconds.toFixed(0)} s.`);
    }
    if (told.state === "failed") { bar.hidden = true; return tell(told.error, true); }
    if (told.state === "done") {
      bar.value = 1;
      tell("Done.");
      list(told.links);
      if (told.links.report) await show(told.links.report);
      return undefined;
    }
    await wait(1);
  }
  return undefined;
};

get("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  get("send").disabled = true;
  get("report").hidden = true;
  get("results").replaceChildren();
  try {
    tell("Sending.");
    get("state").scrollIntoView();
    get("bar").hidden = false;
    get("bar").removeAttribute("value");
    const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16)).join("-");
    const answer = await fetch("/jobs", {
      method: "POST", body: body(), headers: { ...authorized(), "Idempotency-Key": key },
    });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    job = told.id;
    get("remove").hidden = false;
    await follow(job);
  } catch (error) {
    get("bar").hidden = true;
    tell(error.message, true);
  } finally {
    get("send").disabled = false;
  }
});
get("remove").addEventListener("click", async () => {
  if (job === null) return;
  const mine = job;
  job = null;
  try {
    await ask(`/jobs/${mine}`, { method: "DELETE" });
    get("report").hidden = true;
    get("results").replaceChildren();
    get("bar").hidden = get("remove").hidden = true;
    tell("Removed.");
  } catch (error) {
    tell(error.message, true);
  }
});
