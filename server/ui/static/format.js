// Numbers as people read them.

/** 1,234 above ten, 3.1 below. */
export function count(value) {
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

/** A part of one, as 42 %. */
export function percent(value) {
  return `${(100 * value).toLocaleString("en", { maximumFractionDigits: value < 0.1 ? 1 : 0 })} %`;
}

/** Seconds, as 850 µs, 12 ms, 3.4 s or 5 min. */
export function duration(seconds) {
  if (seconds >= 7200) return `${count(seconds / 3600)} h`;
  if (seconds >= 120) return `${Math.round(seconds / 60)} min`;
  if (seconds >= 1) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds >= 0.001 || seconds === 0 ? `${count(seconds * 1e3)} ms` : `${count(seconds * 1e6)} µs`;
}

/** Bytes, as 32 MiB. */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value ? Math.min(units.length - 1, Math.floor(Math.log2(value) / 10)) : 0;
  return `${count(value / 2 ** (10 * power))} ${units[power]}`;
}
