// The page in a frame of a phone's width; tells that width, and the width that the page takes.
const frame = document.getElementById("phone");
const look = () => told([frame.contentWindow.innerWidth, frame.contentDocument.scrollingElement.scrollWidth]);
if (frame.contentDocument.readyState === "complete" && frame.contentDocument.body.children.length) look();
else frame.addEventListener("load", look);
