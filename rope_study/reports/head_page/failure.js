// Says what went wrong, should the rest of the script fail.
"use strict";

addEventListener("error", (event) => {
  const box = document.getElementById("failure");
  box.textContent = `This page failed: ${event.message}`;
  box.hidden = false;
  delete document.body.dataset.ready;
});
