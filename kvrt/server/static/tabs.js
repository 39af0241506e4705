// The parts of the page: one is shown, and its name stands behind the address.

const MOVES = {
  ArrowRight: (place) => place + 1,
  ArrowLeft: (place) => place - 1,
  Home: () => 0,
  End: () => -1,
};

export class Tabs {
  constructor(page) {
    this.page = page;
    this.changed = () => {}; // called when another part is shown
    this.tabs = [...page.querySelectorAll("[role=tab]")];
    for (const tab of this.tabs) {
      tab.addEventListener("click", () => this.go(tab));
      tab.addEventListener("keydown", (event) => this.move(event, tab));
    }
    window.addEventListener("hashchange", () => this.follow());
    this.follow();
  }

  get shown() {
    return this.tabs.find((tab) => tab.ariaSelected === "true").getAttribute("aria-controls");
  }

  // To the part that the address names, or that has what it names.
  follow() {
    const named = this.page.getElementById(location.hash.slice(1));
    const panel = named?.closest("[role=tabpanel]");
    this.choose(this.tabs.find((tab) => tab.getAttribute("aria-controls") === panel?.id));
    if (named !== panel) named?.focus();
  }

  choose(chosen = this.tabs[0]) {
    for (const tab of this.tabs) {
      tab.ariaSelected = String(tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      this.page.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    this.changed();
  }

  go(tab) {
    history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
    this.choose(tab);
    tab.focus();
  }

  move(event, tab) {
    if (!(event.key in MOVES)) return;
    event.preventDefault();
    this.go(this.tabs.at(MOVES[event.key](this.tabs.indexOf(tab)) % this.tabs.length));
  }
}
