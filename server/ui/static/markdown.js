// The part of Markdown that models write: paragraphs, headings, lists, code, bold, italics.
// A text becomes blocks, and a block becomes elements. Nothing here ever becomes markup.

import { copyButton } from "./copy.js";
import { element } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const HEADING = /^#{1,6}\s+(.*)$/;
// Bounded, so that no text, however it is made, takes long.
const INLINE = new RegExp(
  [
    /(`{1,3})([^`]|[^`][\s\S]{0,1000}?[^`])\1(?!`)/,
    /\*\*(\S|\S[\s\S]{0,1000}?\S)\*\*/,
    /\*([^\s*]|[^\s*][^*\n]{0,1000}[^\s*])\*/,
  ]
    .map((rule) => rule.source)
    .join("|"),
);

/** Show a text in a container. Blocks that have not changed since the last call keep their elements. */
export function show(container, text) {
  const blocks = blocksOf(text);
  const shown = [...container.children];
  blocks.forEach((block, i) => {
    const source = JSON.stringify(block);
    if (shown[i]?.source === source) return;
    const made = elementOf(block);
    made.source = source;
    if (shown[i]) shown[i].replaceWith(made);
    else container.append(made);
  });
  shown.slice(blocks.length).forEach((rest) => rest.remove());
}

/** The blocks of a text: {kind: paragraph | heading | code | list, …}. Unfinished code is a block already. */
export function blocksOf(text) {
  const blocks = [];
  const lines = text.split("\n");
  let i = 0;
  while (i < lines.length) {
    if (lines[i].trim()) {
      const { block, end } = taken(lines, i);
      blocks.push(block);
      i = end;
    } else i += 1;
  }
  return blocks;
}

function taken(lines, start) {
  const fence = FENCE.exec(lines[start]);
  if (fence) return takenCode(lines, start, fence);
  const heading = HEADING.exec(lines[start]);
  if (heading) return { block: { kind: "heading", text: heading[1] }, end: start + 1 };
  return ITEM.test(lines[start]) ? takenList(lines, start) : takenParagraph(lines, start);
}

function takenCode(lines, start, [, fence, language]) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() !== fence) end += 1;
  return { block: { kind: "code", language, text: lines.slice(start + 1, end).join("\n") }, end: end + 1 };
}

function takenList(lines, start) {
  const [, , mark] = ITEM.exec(lines[start]);
  const ordered = isNumber(mark);
  const items = [];
  let end = start;
  for (; end < lines.length; end += 1) {
    const item = ITEM.exec(lines[end]);
    if (item && !item[1] && isNumber(item[2]) !== ordered) break;
    if (item) items.push({ depth: Math.min(3, Math.floor(item[1].length / 2)), text: item[3] });
    else if (/^\s+\S/.test(lines[end])) items.at(-1).text += `\n${lines[end].trim()}`;
    else if (lines[end].trim() || !ITEM.test(lines[end + 1] ?? "")) break;
  }
  return { block: { kind: "list", ordered, start: parseInt(mark, 10), items }, end };
}

function takenParagraph(lines, start) {
  const begins = (line) => !line.trim() || [FENCE, ITEM, HEADING].some((rule) => rule.test(line));
  let end = start + 1;
  while (end < lines.length && !begins(lines[end])) end += 1;
  return { block: { kind: "paragraph", text: lines.slice(start, end).join("\n") }, end };
}

function isNumber(mark) {
  return /\d/.test(mark);
}

function elementOf(block) {
  if (block.kind === "code") return codeOf(block);
  if (block.kind === "list") return listOf(block);
  return element(block.kind === "heading" ? "h3" : "p", {}, ...inline(block.text));
}

function codeOf({ language, text }) {
  const code = element("code", {}, text);
  const head = element("div", { class: "code-head" }, element("span", {}, language || "code"));
  head.append(copyButton(() => text, code));
  return element("div", { class: "code" }, head, element("pre", { tabindex: "0" }, code));
}

function listOf({ ordered, start, items }) {
  const list = element(ordered ? "ol" : "ul", ordered ? { start } : {});
  for (const { depth, text } of items) {
    list.append(element("li", { class: `depth-${depth}` }, ...inline(text)));
  }
  return list;
}

function inline(text) {
  const parts = [];
  let rest = text;
  for (let found = INLINE.exec(rest); found; found = INLINE.exec(rest)) {
    if (found.index) parts.push(rest.slice(0, found.index));
    const [whole, , code, bold, italic] = found;
    if (code !== undefined) parts.push(element("code", {}, code));
    else parts.push(element(bold ? "strong" : "em", {}, ...inline(bold ?? italic)));
    rest = rest.slice(found.index + whole.length);
  }
  if (rest) parts.push(rest);
  return parts;
}
