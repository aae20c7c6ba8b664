// Everything that acts or scrolls must be able to take the focus; tells how many there are and which cannot.
document.querySelectorAll("details").forEach((d) => { d.open = true; });
const acting = [...document.querySelectorAll("a, button:not([hidden]), select, input, summary, .scroll")];
const deaf = acting.filter((e) => {
  e.focus();
  return document.activeElement !== e;
});
told({ acting: acting.length, deaf: deaf.map((e) => e.outerHTML.slice(0, 80)) });
