// Drives the filter of the grids as a person would; tells what was seen after each step.
const all = (selector) => [...document.querySelectorAll(selector)];
const set = (id, value) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event(id === "task" ? "input" : "change"));
};
const seen = {};
seen.first = all(".card").length;
document.getElementById("more").click();
seen.more = all(".card").length;
seen.focused = all(".card").indexOf(document.activeElement);
set("outcome", "failed");
seen.failed = all(".card .outcome").every((c) => c.textContent.includes("failed"));
seen.framed = all(".card .wrong").length > 0;
set("outcome", "solved");
seen.framed_when_solved = all(".card .wrong").length;
seen.count = document.getElementById("count").textContent;
set("outcome", "");
set("rung", "arc · seen_task");
seen.rung = all(".card").length;
set("rung", "");
set("task", "TASK-3");
seen.task = all(".card h3").length > 0 && all(".card h3").every((h) => h.textContent.includes("task-3"));
seen.digits_off = all(".card svg text").length;
document.getElementById("digits").click();
seen.digits_on = all(".card svg text").length > 0;
told(seen);
