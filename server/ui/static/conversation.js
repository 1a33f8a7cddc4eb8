// The turns of a conversation. They survive a reload, and are forgotten with the tab.
//
// A turn is {role: "user", content}, or {role: "assistant", content, ending, error, facts}:
//   ending  stop | length | stopped | failed, as it ended; unset while it is being written
//   error   what the server said, when it failed
//   facts   {tokens, seconds, first}: how many, in how long, and after how long the first came

const KEPT = "core.conversation";

export class Conversation {
  constructor() {
    this.turns = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
  }

  get last() {
    return this.turns.at(-1);
  }

  add(turn) {
    this.turns.push(turn);
    return turn;
  }

  /** Take the last answer away, to have another. */
  dropAnswer() {
    if (this.last?.role === "assistant") this.turns.pop();
  }

  clear() {
    this.turns = [];
    this.keep();
  }

  /** Remember the turns as they are; an answer that is being written counts as stopped. */
  keep() {
    const over = (turn) => (turn.role === "user" || turn.ending ? turn : { ...turn, ending: "stopped" });
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(this.turns.map(over)));
    } catch {
      sessionStorage.removeItem(KEPT); // longer than a browser keeps: it lasts until the page is left
    }
  }

  /** What is sent. A question that nothing answered is left out: templates want the roles to take turns. */
  messages(system) {
    const answered = this.turns.filter((turn, i) => {
      const answer = turn.role === "user" ? this.turns[i + 1] : turn;
      return !answer || answer === this.last || answer.content;
    });
    const said = answered.filter((turn) => turn.content).map(({ role, content }) => ({ role, content }));
    return system ? [{ role: "system", content: system }, ...said] : said;
  }
}
