// The page of detections: bars and rows play their video, a cursor follows it, and a filter acts on all videos.
// Everything that a user named comes from data-* attributes and is only compared or set as text, never as markup.
"use strict";

(() => {
  const SECONDS = 1; // of an arrow key
  const SCORE = 0.05; // of a key

  /** One video of the page: its player (null where no file is known), its time line and its table. */
  class Player {
    constructor(article) {
      this.article = article;
      this.video = article.querySelector("video");
      this.drawing = article.querySelector("svg.timeline");
      this.bars = [...article.querySelectorAll(".bar")];
      this.rows = [...article.querySelectorAll("tr[data-item]")];
      this.chosen = null;
      this.cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
      this.cursor.setAttribute("class", "cursor");
      this.cursor.setAttribute("y1", 0);
      this.cursor.setAttribute("y2", this.drawing.viewBox.baseVal.height - 34);
      this.drawing.append(this.cursor);
      this.drawing.setAttribute("role", "group");
      for (const bar of this.bars) {
        bar.setAttribute("role", "button");
        bar.setAttribute("aria-label", bar.querySelector("title").textContent);
      }
      for (const row of this.rows) row.tabIndex = 0;
      this.listen();
      this.showTime(0);
    }

    listen() {
      this.article.addEventListener("click", (event) => {
        const item = event.target.closest(".bar, tr[data-item]");
        if (item) this.start(this.barOf(item));
        else if (event.target.closest("svg.timeline")) this.seekTo(this.secondsAt(event.clientX));
      });
      const video = this.video;
      if (!video) return;
      const check = () => {
        const soundAlone = video.readyState > 0 && !video.videoWidth;
        if (video.error || soundAlone) this.giveUp();
      };
      for (const name of ["error", "loadedmetadata"]) video.addEventListener(name, check);
      check(); // either may have happened before this script ran
      for (const name of ["timeupdate", "seeking", "seeked"]) {
        video.addEventListener(name, () => this.showTime(video.currentTime));
      }
      video.addEventListener("play", () => {
        active = this;
        for (const other of players) if (other !== this) other.pause();
        const follow = () => {
          this.showTime(video.currentTime);
          if (!video.paused) requestAnimationFrame(follow);
        };
        follow();
      });
    }

    get playable() {
      return this.video !== null && !this.video.hidden && !this.article.classList.contains("off");
    }

    get inView() {
      const { top, bottom } = this.article.getBoundingClientRect();
      return bottom > Math.max(top, 0) && top < innerHeight;
    }

    giveUp() {
      this.video.hidden = true;
      this.video.nextElementSibling.hidden = false;
    }

    pause() {
      this.video?.pause();
    }

    toggle() {
      if (this.video.paused) this.video.play().catch(() => {}); // refused by the browser's settings: it stays paused
      else this.video.pause();
    }

    /** x of a time in the units of the drawing, which are those of its data-left and data-right. */
    place(seconds) {
      const { span, left, right } = this.drawing.dataset;
      return Number(left) + (right - left) * Math.min(seconds / span, 1);
    }

    /** Time at a place on the screen; negative over the names of the classes. */
    secondsAt(clientX) {
      const { span, left, right } = this.drawing.dataset;
      const box = this.drawing.getBoundingClientRect();
      const x = ((clientX - box.left) / box.width) * this.drawing.viewBox.baseVal.width;
      return Math.min((x - left) / (right - left), 1) * span;
    }

    showTime(seconds) {
      for (const name of ["x1", "x2"]) this.cursor.setAttribute(name, this.place(seconds));
    }

    seekTo(seconds) {
      if (seconds < 0) return;
      active = this;
      this.showTime(seconds);
      if (this.playable) this.video.currentTime = seconds;
      const frame = this.drawing.parentElement; // on a narrow screen the drawing is wider than its frame
      const at = (this.place(seconds) / this.drawing.viewBox.baseVal.width) * frame.scrollWidth;
      const hidden = at < frame.scrollLeft || at > frame.scrollLeft + frame.clientWidth;
      if (hidden) frame.scrollLeft = at - frame.clientWidth / 2;
    }

    barOf(item) {
      return item.matches(".bar") ? item : this.bars.find((bar) => bar.dataset.item === item.dataset.item);
    }

    /** Plays from the start of a bar, and marks it with its row. */
    start(bar) {
      this.chosen = bar;
      for (const other of this.bars) other.classList.toggle("chosen", other === bar);
      for (const row of this.rows) {
        const same = row.dataset.item === bar.dataset.item;
        row.classList.toggle("chosen", same);
        const frame = row.closest(".scroll");
        if (same && (row.offsetTop < frame.scrollTop || row.offsetTop > frame.scrollTop + frame.clientHeight - 40)) {
          frame.scrollTop = row.offsetTop - frame.clientHeight / 2;
        }
      }
      this.setTabStop();
      this.article.querySelector(".now").textContent = bar.querySelector("title").textContent;
      this.seekTo(Number(bar.dataset.start));
      if (this.playable && this.video.paused) this.toggle();
    }

    /** One bar of each time line is reached by Tab: the chosen one, or the first that is shown. */
    setTabStop() {
      const shown = this.bars.filter((bar) => !bar.classList.contains("off"));
      const stop = shown.includes(this.chosen) ? this.chosen : shown[0];
      for (const bar of this.bars) bar.setAttribute("tabindex", bar === stop ? 0 : -1);
    }

    /** Detections that the filter leaves, in order of time. */
    detections() {
      const shown = this.bars.filter((bar) => bar.dataset.item && !bar.classList.contains("off"));
      return shown.sort((a, b) => a.dataset.start - b.dataset.start || a.dataset.end - b.dataset.end);
    }
  }

  const players = [];
  let active;
  for (const article of document.querySelectorAll("article.video")) players.push(new Player(article));
  const filter = document.querySelector(".filter");
  if (!players.length || !filter) return; // nothing was detected
  active = players[0];
  document.body.classList.add("live");

  const slider = filter.querySelector("input[type=range]");
  const search = filter.querySelector("input[type=search]");
  const boxes = [...filter.querySelectorAll("input[type=checkbox]")];

  function applyFilter() {
    const least = Number(slider.value);
    const picked = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const whole = least === 0 && picked.size === boxes.length;
    let shown = 0, total = 0, videos = 0;
    for (const player of players) {
      for (const item of [...player.bars, ...player.rows]) {
        const { label, score = 1 } = item.dataset; // ground truth has no score
        item.classList.toggle("off", !picked.has(label) || Number(score) < least);
      }
      player.setTabStop();
      shown += player.detections().length;
      total += player.rows.length;
      const empty = !whole && player.bars.every((bar) => bar.classList.contains("off"));
      player.article.classList.toggle("off", empty);
      if (empty) player.pause();
      else videos += 1;
    }
    filter.querySelector("output").textContent = least.toFixed(2);
    filter.querySelector(".picked").textContent =
      picked.size === boxes.length ? `all ${boxes.length}` : `${picked.size} of ${boxes.length}`;
    filter.querySelector("[role=status]").textContent =
      `${shown} of ${total} detections shown, in ${videos} of ${players.length} videos.`;
  }

  slider.addEventListener("input", applyFilter);
  for (const box of boxes) box.addEventListener("change", applyFilter);
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    for (const box of boxes) box.closest("li").hidden = !box.value.toLowerCase().includes(wanted);
  });
  for (const button of filter.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      for (const box of boxes) if (!box.closest("li").hidden) box.checked = Boolean(button.value);
      applyFilter();
    });
  }

  /** The next or previous detection, on to the next or previous video where one has no more. */
  function step(by) {
    const all = players.flatMap((player) => player.detections().map((bar) => ({ player, bar })));
    const from = all.findIndex(({ player, bar }) => player === active && bar === active.chosen);
    const first = all.findIndex(({ player }) => player === active);
    const found = all[from >= 0 ? from + by : Math.max(first, 0)];
    if (!found) return;
    const focused = document.activeElement.matches(".bar");
    found.player.start(found.bar);
    if (!found.player.inView) found.player.article.scrollIntoView();
    if (focused) found.bar.focus({ preventScroll: true });
  }

  function raise(by) {
    slider.value = Number(slider.value) + by;
    applyFilter();
  }

  const seek = (by) => active.seekTo(Math.max(active.video.currentTime + by, 0));
  const [more, less] = [() => raise(SCORE), () => raise(-SCORE)];
  const everywhere = { n: () => step(1), p: () => step(-1), "+": more, "=": more, "-": less };
  const playing = { " ": () => active.toggle(), ArrowLeft: () => seek(-SECONDS), ArrowRight: () => seek(SECONDS) };

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || target === search) return;
    // Keys act on the video that was used last; where that is out of sight, on the first that is not.
    if (!active.inView && (!active.playable || active.video.paused)) active = players.find((p) => p.inView) ?? active;
    const item = target.closest(".bar, tr[data-item]");
    const owned = target.matches("input, button, summary, a, video"); // has a use of its own for space and arrows
    let action = everywhere[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (item && (event.key === "Enter" || event.key === " ")) {
      const player = players.find(({ article }) => article.contains(item));
      const bar = player.barOf(item);
      const again = event.key === " " && bar === player.chosen && player.playable; // a second space pauses
      action = () => (again ? player.toggle() : player.start(bar));
    } else if (!owned && active.playable) action ??= playing[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  filter.hidden = false;
  applyFilter();
})();
