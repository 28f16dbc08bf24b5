// Starts the page. The body is marked `data-ready` last, so whoever sees the mark saw no error.

for (const name of ["layer", "head", "text"]) {
  byId(name).addEventListener("change", (event) => choose({ [name]: Number(event.target.value) }));
}
byId("weak").addEventListener("change", showAttention);
byId("map").addEventListener("pointermove", pointByPointer);
byId("map").addEventListener("pointerdown", pointByPointer);
byId("map").addEventListener("keydown", pointByKey);
addEventListener("hashchange", () => {
  readHash();
  show();
});
addEventListener("resize", () => {
  showOverview();
  showNorms();
  showAttention();
});
fillOverview();
readHash();
show();
pointAtStrongest();
document.body.dataset.ready = "";
