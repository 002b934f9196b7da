/** The playground: what the reader asks for goes to the server, and what the server says comes onto the page. */
import { Announcer } from "./announcer.js";
import { apiKey, ServerError, setApiKey } from "./api.js";
import { loadCatalogue } from "./catalogue.js";
import { compared } from "./comparison.js";
import { Composer } from "./composer.js";
import { byId, make } from "./dom.js";
import { explained } from "./explain.js";
import { acceptInput, refuseInput } from "./fields.js";
import { unfoldHelp } from "./help.js";
import { Pane } from "./pane.js";
import { Run } from "./run.js";
import { FieldError } from "./schema.js";
import { LANGUAGES, snippet } from "./snippets.js";
import { LiveStrip } from "./strip.js";

const RETRY_MS = 1000;
const announcer = new Announcer(byId("announcements"));
let composer = null;
let runs = [];
let going = null;

/** Loads what is served; asks for a key, or again a little later, where the server wants that. */
async function begin() {
  byId("stage").dataset.state = "loading";
  try {
    const catalogue = await loadCatalogue();
    if (!catalogue.models.length) throw new ServerError(503, { message: "The models are still being loaded" });
    composer = new Composer(catalogue);
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    cannotBegin(error);
    return;
  }
  byId("compose").hidden = false;
  byId("stage").dataset.state = "empty";
  byId("notice").replaceChildren();
  announcer.say("Ready. Write a prompt and run it.");
}

function cannotBegin(error) {
  const { title, message, advice } = explained(error);
  byId("stage").dataset.state = "waiting";
  byId("notice").replaceChildren(make("strong", {}, title), make("p", {}, message), make("p", {}, advice));
  if (error.status === 401) askForKey(begin, true);
  else setTimeout(begin, RETRY_MS * (error.retryAfter ?? 1));
}

/** `refused` is whether the server wants another than the one it was sent, or one at all. */
function askForKey(then, refused = false) {
  const dialog = byId("key-dialog");
  acceptInput(byId("key"));
  byId("key").value = apiKey();
  if (!dialog.open) dialog.showModal();
  if (refused && apiKey()) {
    refuseInput(byId("key"), "The server refused this key.", "alert");
    byId("key").select();
  }
  dialog.onclose = () => {
    if (dialog.returnValue !== "use") return;
    dialog.returnValue = "";
    setApiKey(byId("key").value.trim());
    then();
  };
}

async function run() {
  let plans;
  try {
    plans = composer.plans();
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    announcer.say(error.message);
    return;
  }
  const { model } = composer;
  const panes = plans.map(() => new Pane());
  byId("panes").replaceChildren(...panes.map((pane) => pane.element));
  byId("verdict").textContent = "";
  byId("stage").dataset.state = "shown";
  byId("stage").dataset.count = panes.length;
  byId("legend").dataset.kind = model.kind;
  working(true);
  announcer.say(`Running ${plans.map((plan) => plan.procedure.name.replaceAll("_", " ")).join(" and ")}.`);
  if (matchMedia("(max-width: 60rem)").matches) byId("stage").scrollIntoView({ block: "start" });
  going = Promise.all(plans.map((plan, i) => follow(plan, panes[i], i, model)));
  try {
    await going;
  } finally {
    working(false);
  }
  const ended = panes.filter((pane) => pane.element.dataset.state === "done");
  if (ended.length) announcer.say(`Finished. ${ended.map((pane) => pane.summary()).join(". ")}`);
  if (ended.length === 2) {
    byId("verdict").textContent = compared(...panes.map((pane, i) => outcome(pane, plans[i], model)));
  }
}

/** Runs once more; what still runs beside the one that failed is given up first. */
async function again() {
  await cancelAll();
  await going;
  if (!byId("run").disabled) run();
}

const outcome = (pane, plan, model) => ({
  kind: model.kind,
  name: plan.procedure.name.replaceAll("_", " "),
  usage: pane.usage,
  outputs: pane.answer.outputs.map((output) => output.text ?? output.image),
});

async function follow(plan, pane, index, model) {
  pane.begin(model, plan.procedure, plan.body);
  const own = new Run(plan.body, plan.automatic, (event, data) => {
    pane.take(event, data);
    if (event === "token" && index === 0 && data.index === 0) announcer.add(data.text);
  });
  runs.push(own);
  try {
    const answer = await own.finish();
    if (answer) pane.finish(answer);
    else pane.abandon();
    if (pane.element.dataset.state === "cancelled") announcer.say(`Cancelled. ${pane.summary()}`);
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    const box = pane.fail(error, again);
    if (error.status === 401) askForKey(again, true);
    else if (!composer.refuse(error.param, explained(error).message, index)) box.focus();
  } finally {
    runs = runs.filter((one) => one !== own);
  }
}

function working(busy) {
  byId("compose").dataset.busy = String(busy);
  byId("run").disabled = busy;
  byId("cancel").disabled = !busy;
  if (!busy && document.activeElement === document.body) byId("run").focus({ preventScroll: true });
}

const cancelAll = () => Promise.all(runs.map((one) => one.cancel()));

function showCode() {
  let plans;
  try {
    plans = composer.plans();
  } catch (error) {
    if (error instanceof FieldError) return;
    throw error;
  }
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  byId("code-way").hidden = plans.length < 2;
  byId("code-which").replaceChildren(...plans.map((plan, i) => make("option", { value: i }, plan.procedure.name)));
  const write = () => {
    const language = document.querySelector("input[name=language]:checked").value;
    const { body, automatic } = plans[Number(byId("code-which").value || 0)];
    const { preview_every: previews, ...rest } = body;
    const shown = automatic || previews === undefined ? rest : body;
    byId("code").textContent = snippet(language, base, shown, composer.model.kind, apiKey() !== "");
    byId("copied").textContent = "";
  };
  byId("code-dialog").onchange = write;
  write();
  byId("code-dialog").showModal();
}

async function copy() {
  try {
    await navigator.clipboard.writeText(byId("code").textContent);
    byId("copied").textContent = "Copied.";
  } catch {
    // Without https browsers keep the clipboard to themselves: the text is selected, and the keyboard copies it.
    getSelection().selectAllChildren(byId("code"));
    byId("copied").textContent = "Selected: copy it with the keyboard.";
  }
}

byId("languages").append(
  ...Object.entries(LANGUAGES).map(([value, name], i) =>
    make("label", { class: "choice" }, make("input", { type: "radio", name: "language", value, checked: i === 0 }), name)),
);
byId("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!byId("run").disabled) run();
});
byId("cancel").addEventListener("click", cancelAll);
byId("show-code").addEventListener("click", showCode);
byId("copy").addEventListener("click", copy);
byId("code-close").addEventListener("click", () => byId("code-dialog").close());
byId("key-open").addEventListener("click", () => askForKey(() => composer ?? begin()));
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && composer) byId("compose").requestSubmit();
  if (event.key === "Escape" && runs.length) cancelAll();
});
unfoldHelp(byId("compose"));
new LiveStrip().start();
begin();
