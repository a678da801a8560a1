// A third verifier, in JavaScript, written from docs/wire-format.md: messages only.  node verify.js wire.json
"use strict";
const crypto = require("node:crypto"), fs = require("node:fs"), path = require("node:path");
const vectors = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const doc = fs.readFileSync(path.join(__dirname, "../../docs/wire-format.md"), "utf8");

class Refused extends Error { constructor(error, code) { super(code); this.error = error; this.code = code; } }
const form = (ok, code) => { if (!ok) throw new Refused("Malformed", code); };
const must = (ok, code) => { if (!ok) throw new Refused("Unverified", code); };
const sha = (...parts) => crypto.createHash("sha256").update(Buffer.concat(parts)).digest();
const der = Buffer.from("302a300506032b6570032100", "hex");
const signed = (key, signature, data) => crypto.verify(null, data,
  crypto.createPublicKey({ key: Buffer.concat([der, key]), format: "der", type: "spki" }), signature);

// The document's tables are the schema.
const table = (name) => doc.split(`<!-- ${name} -->\n`)[1].split(`\n<!-- /${name} -->`)[0].split("\n").slice(2)
  .map((row) => row.replace(/^\||\|$/g, "").split("|").map((c) => c.trim()));
const fields = (cell) => [...cell.matchAll(/`(\w+)` ((?:[^,`]|,(?! `))+)/g)].map((m) => [m[1], m[2].trim()]);
const number = (cell) => Number(cell.replaceAll(",", ""));
const SIZES = new Map();
const KINDS = new Map(table("subjects").map(([subject, stream, , count, bytes]) => {
  const tokens = subject.replaceAll("`", "").split("."), kind = tokens.filter((t) => t[0] !== "<").join(".");
  SIZES.set(kind, [number(count), number(bytes)]);
  return [kind, [tokens.filter((t) => t[0] === "<").map((t) => t.slice(1, -1)), stream]];
}));
const EVENTS = new Map(table("events").map(([tag, kind, own]) => [tag.replaceAll("`", ""), [kind.replaceAll("`", ""), fields(own)]]));
const STRUCTS = new Map(table("structs").map(([name, own]) => [name, fields(own)]));
const STREAMS = new Set([...KINDS.values()].map(([, stream]) => stream));

// msgpack: shortest forms only; integers are BigInt, binary is Buffer.
function unpack(data, code) {
  let at = 0;
  const take = (n) => { form(n <= data.length - at, code); at += n; return data.subarray(at - n, at); };
  const uint = (n, least) => { const v = BigInt("0x" + take(n).toString("hex")); form(v >= least, code); return v; };
  const sint = (n, above) => { const v = BigInt.asIntN(8 * n, BigInt("0x" + take(n).toString("hex"))); form(v < above, code); return v; };
  const text = (n) => {
    try { return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(take(n)); } catch { return form(false, code); }
  };
  const list = (n, depth) => { form(n <= data.length, code); return Array.from({ length: n }, () => value(depth + 1)); };
  const value = (depth = 0) => {
    form(depth < 8, code);
    const h = take(1)[0];
    if (h < 0x80) return BigInt(h);
    if (h >= 0xe0) return BigInt(h - 256);
    if (h >= 0x90 && h < 0xa0) return list(h - 0x90, depth);
    if (h >= 0xa0 && h < 0xc0) return text(h - 0xa0);
    if (h === 0xc0) return null;
    if (h === 0xc2 || h === 0xc3) return h === 0xc3;
    if (h >= 0xc4 && h <= 0xc6) return take(Number(uint(1 << h - 0xc4, [0n, 256n, 65536n][h - 0xc4])));
    if (h >= 0xcc && h <= 0xcf) return uint(1 << h - 0xcc, [128n, 256n, 65536n, 4294967296n][h - 0xcc]);
    if (h >= 0xd0 && h <= 0xd3) return sint(1 << h - 0xd0, [-32n, -128n, -32768n, -2147483648n][h - 0xd0]);
    if (h >= 0xd9 && h <= 0xdb) return text(Number(uint(1 << h - 0xd9, [32n, 256n, 65536n][h - 0xd9])));
    if (h === 0xdc || h === 0xdd) return list(Number(uint(2 << h - 0xdc, [16n, 65536n][h - 0xdc])), depth);
    return form(false, code);
  };
  const result = value();
  form(at === data.length, code);
  return result;
}

function isDecimal(v) {
  const m = typeof v === "string" && /^-?(\d+)(?:\.(\d+))?(?:E([+-]\d+))?$/.exec(v);
  if (!m) return false;
  const digits = m[1] + (m[2] ?? ""), exponent = Number(m[3] ?? 0) - (m[2] ?? "").length;
  const coefficient = digits.replace(/^0+(?=\d)/, ""), adjusted = exponent + coefficient.length - 1;
  // to-scientific-string: plain from 10^-6 on where no digits must be invented, else one digit before the point.
  if (exponent <= 0 && adjusted >= -6 ? m[3] !== undefined || /^0\d/.test(m[1]) : m[3] === undefined || m[1].length > 1 || /^[+-]0\d/.test(m[3])) return false;
  if (/^0*$/.test(coefficient)) return Math.abs(exponent) <= 64;
  return adjusted < 20 && -exponent - /0*$/.exec(coefficient)[0].length <= 18;
}
const positive = (v) => isDecimal(v) && v[0] !== "-" && /[1-9]/.test(v.split("E")[0]);
const scaled = (v) => { const [m, e] = v.split("E"), [i, f = ""] = m.split("."); return BigInt(i + f) * 10n ** BigInt(200 + Number(e ?? 0) - f.length); };
const within = (price, qty) => scaled(price) <= 10n ** 212n && scaled(qty) <= 10n ** 216n && scaled(price) * scaled(qty) <= 10n ** 418n;
const I63 = 2n ** 63n;
function fits(v, of) {
  if (of.endsWith(" or nil")) return v === null || fits(v, of.slice(0, -7));
  if (of.startsWith("array of ")) return Array.isArray(v) && v.every((x) => fits(x, of.slice(9)));
  if (of[0] === '"') return of.split(" / ").includes(`"${v}"`);
  if (of.startsWith("bin")) return Buffer.isBuffer(v) && (of === "bin" || v.length === Number(of.slice(4, -1)));
  if (of === "int" || of === "count") return typeof v === "bigint" && v >= (of === "int" ? -I63 : 0n) && v < I63;
  if (of === "integer") return typeof v === "bigint";
  if (of === "text") return typeof v === "string";
  if (of === "bool") return typeof v === "boolean";
  if (of === "decimal") return isDecimal(v);
  const own = STRUCTS.get(of);
  return Array.isArray(v) && v.length === own.length && own.every(([, t], i) => fits(v[i], t)) && (of !== "Session" || [0, 32].includes(v[4].length));
}
function checkEvent(event, kind) {
  const own = Array.isArray(event) && EVENTS.get(event[0]);
  form(own && own[0] === kind && event.length === 5 + own[1].length, "EVENTS");
  form(fits(event[1], "bin(16)") && fits(event[2], "count") && fits(event[4], "array of At"), "EVENTS");
  form(fits(event[3], "array of bin(16)") && event[3].length <= 64 && own[1].every(([, t], i) => fits(event[5 + i], t)), "EVENTS");
  const named = Object.fromEntries(own[1].map(([name], i) => [name, event[5 + i]])), tag = event[0].split("/")[0];
  const above = { "md.trade": ["price", "qty"], fill: ["price", "qty"], "md.quote": ["bid", "ask"], "order.intent": ["qty"] }[tag] ?? [];
  form(above.every((name) => positive(named[name])), "EVENTS");
  const pairs = { "md.trade": [["price", "qty"]], "md.quote": [["bid", "bid_qty"], ["ask", "ask_qty"]] }[tag] ?? [];
  form(pairs.every(([p, q]) => within(named[p], named[q])), "EVENTS");
  if (tag === "order.intent") form(named.type === "limit" ? positive(named.price ?? "") : named.price === null, "EVENTS");
  if (tag === "order.decision") form((named.verdict === "permit") === (named.permit !== null) && (named.verdict === "deny") === named.denials.length > 0 && [0, 32].includes(named.policy_hash.length), "EVENTS");
  if (tag === "order.event") form([0, 16].includes(named.decision_id.length), "EVENTS");
  if (tag === "fill") form([0, 16].includes(named.intent_id.length), "EVENTS");
  if (tag === "dead") form(named.payload.length <= 65536, "EVENTS");
}

const NAME = /^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$/;
const escape = (raw) => [...raw].map((b) => /[A-Za-z0-9]/.test(String.fromCharCode(b)) ? String.fromCharCode(b) : b === 0x2f ? "-" : b === 0x3a ? "~" : "=" + b.toString(16).toUpperCase().padStart(2, "0")).join("");
function parseSubject(text) {
  form(text.length <= 255, "SUBJECT_LENGTH");
  const tokens = text.split(".");
  const depth = [2, 1].find((d) => KINDS.get(tokens.slice(0, d).join("."))?.[0].length === tokens.length - d);
  form(depth, "SUBJECT");
  const kind = tokens.slice(0, depth).join("."), [names, stream] = KINDS.get(kind);
  names.forEach((name, i) => {
    const token = tokens[depth + i];
    if (name !== "symbol" && name !== "asset") {
      form(NAME.test(token), "NAME");
      return form(name !== "severity" || ["info", "warning", "high", "critical"].includes(token), "SEVERITY");
    }
    form(/^([A-Za-z0-9~-]|=[0-9A-F]{2})+$/.test(token) && token.length <= 96, "SYMBOL_TOKEN");
    const raw = Buffer.from(token.replaceAll("-", "/").replaceAll("~", ":").replace(/=(..)/g, (_, x) => String.fromCharCode(parseInt(x, 16))), "latin1");
    form(escape(raw) === token && Buffer.from(raw.toString("utf8"), "utf8").equals(raw), "SYMBOL_TOKEN");
  });
  return [kind, stream];
}
const covers = (pattern, subject) => new RegExp("^" + pattern.split(".").map((t, i, all) => t === ">" && i === all.length - 1 ? ".+" : t === "*" ? "[^.]+" : t.replace(/[^a-z0-9-]/g, "\\$&")).join("\\.") + "$").test(subject);

function nkey(text, kind) {
  form(/^[OAUN][A-Z2-7]{55}$/.test(text), "KEY_TEXT");
  const bits = [...text].map((c) => "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".indexOf(c).toString(2).padStart(5, "0")).join("");
  const raw = Buffer.from(bits.match(/.{8}/g).map((b) => parseInt(b, 2)));
  form(raw[0] === { A: 0x00, U: 0xa0 }[kind], "KEY_PREFIX");
  let crc = 0;
  for (const byte of raw.subarray(0, 33)) { crc ^= byte << 8; for (let i = 0; i < 8; i++) crc = (crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1) & 0xffff; }
  form(raw.readUInt16LE(33) === crc, "KEY_CHECKSUM");
  return raw.subarray(1, 33);
}
const CLAIMS = /^\{"iat":(\d+),"iss":"([^"]*)","sub":"([^"]*)","name":"([^"]*)","exp":(\d+),"jti":"([A-Za-z0-9_-]{1,64})","nats":\{"issuer_account":"([^"]*)","tags":\["boot:([0-9a-f]{32})"\],"type":"user","version":2\}\}$/;
function openCredential(text, root) {
  form(text.length <= 1024 && /^[\x00-\x7f]*$/.test(text), "JWT_SIZE");
  const parts = text.split(".");
  form(parts.length === 3, "JWT_PARTS");
  must(parts[0] === Buffer.from('{"typ":"JWT","alg":"ed25519-nkey"}').toString("base64url"), "JWT_HEADER");
  const [body, signature] = parts.slice(1).map((p) => { const raw = Buffer.from(p, "base64url"); form(p && raw.toString("base64url") === p, "JWT_BASE64"); return raw; });
  form(signature.length === 64, "JWT_SIGNATURE");
  const role = nkey(JSON.parse(body).iss, "A");
  must(signed(role, signature, Buffer.from(parts.slice(0, 2).join("."))), "JWT_SIGNATURE");
  const m = CLAIMS.exec(body.toString());
  form(m, "CREDENTIAL");
  const [iat, exp] = [BigInt(m[1]), BigInt(m[5])], session = nkey(m[3], "U"), account = nkey(m[7], "A");
  form(NAME.test(m[4]), "NAME");
  form(0n < iat && iat < exp, "JWT_TIMES");
  must(Object.hasOwn(root.components, m[4]), "COMPONENT_UNKNOWN");
  const record = root.components[m[4]];
  must(nkey(record.role_key, "A").equals(role), "ROLE_KEY");
  must(nkey(record.account, "A").equals(account), "ACCOUNT");
  must(exp - iat <= BigInt(record.lifetime), "CREDENTIAL_LIFETIME");
  return { name: m[4], boot: Buffer.from(m[8], "hex"), session, iat, exp };
}

const ZERO = Buffer.alloc(32), NS = 1000000000n, PREFIX = Buffer.from("tallystick seal v1\0");
const STATEMENT = ["text", "text", "bin(16)", "text", "count", "bin(32)", "count", "bin(32)", "count", "integer", "bin(32)"];
const PAYLOAD = ["integer", "text", "bin", "bin", "integer", "array of bin", "bin"];
const typed = (v, types, code) => form(Array.isArray(v) && v.length === types.length && types.every((t, i) => fits(v[i], t)), code);
function rootAt(leaf, index, size, way) {
  if (size === 1) { must(way.length === 0, "MERKLE_PATH"); return leaf; }
  must(way.length, "MERKLE_PATH");
  const k = 2 ** (31 - Math.clz32(size - 1)), last = way.at(-1), rest = way.slice(0, -1);
  return index < k ? sha(Buffer.from([1]), rootAt(leaf, index, k, rest), last) : sha(Buffer.from([1]), last, rootAt(leaf, index - k, size - k, rest));
}
function verify(root, subject, stream, raw) {
  const [kind, belongs] = parseSubject(subject);
  must(belongs === stream, "STREAM");
  const [most, bytes] = SIZES.get(kind);
  form(raw.length <= bytes + 4096, "PAYLOAD_SIZE");
  const payload = unpack(raw, "PAYLOAD");
  typed(payload, PAYLOAD, "PAYLOAD");
  const [version, text, statement, signature, index, way, events] = payload;
  form(version === 1n, "PAYLOAD_VERSION");
  const credential = openCredential(text, root);
  form(statement.subarray(0, PREFIX.length).equals(PREFIX) && statement.length <= 1024, "STATEMENT");
  const stated = unpack(statement.subarray(PREFIX.length), "STATEMENT");
  typed(stated, STATEMENT, "STATEMENT");
  const [deployment, component, boot, sealedFor, seq, prev, size, tree, time, flags, digest] = stated;
  form(1n <= size && size <= 4096n, "STATEMENT");
  form(flags === 0n || flags === 1n, "STATEMENT_FLAGS");
  form(STREAMS.has(sealedFor), "STATEMENT_STREAM");
  form(prev.equals(ZERO) === (seq === 0n), "STATEMENT_PREV");
  must(deployment === root.deployment, "DEPLOYMENT");
  must(component === credential.name && boot.equals(credential.boot) && digest.equals(sha(Buffer.from(text))), "STATEMENT_CREDENTIAL");
  form(signature.length === 64, "SIGNATURE");
  must(signed(credential.session, signature, statement), "SIGNATURE");
  must((credential.iat - 1n) * NS <= time && time <= credential.exp * NS, "CREDENTIAL_EXPIRED");
  must(sealedFor === stream, "STATEMENT_STREAM");
  form(0n <= index && index < size, "MERKLE_INDEX");
  form(way.every((h) => h.length === 32), "MERKLE_PATH");
  const name = Buffer.from(subject), leaf = sha(Buffer.from([0, name.length >> 8, name.length & 255]), name, events);
  must(rootAt(leaf, Number(index), Number(size), way).equals(tree), "MERKLE_ROOT");
  must(root.components[component].publishes.some((p) => covers(p, subject)), "SCOPE");
  form(events.length <= bytes, "EVENTS_SIZE");
  const decoded = unpack(events, "EVENTS");
  form(Array.isArray(decoded), "EVENTS");
  form(decoded.length <= most, "EVENTS_SIZE");
  decoded.forEach((event) => checkEvent(event, kind));
  form(decoded.length || flags === 1n, "EVENTS_EMPTY");
  return `${leaf.toString("hex")} ${sha(statement).toString("hex")} ${decoded.map((e) => e[0])}`;
}

// The trust root: one version, signed by the pinned key.
const note = vectors.trust_root, end = note.lastIndexOf("\n\n"), body = note.slice(0, end + 1);
const line = Buffer.from(note.slice(end + 2).split(" ")[2], "base64");
if (!signed(Buffer.from(vectors.pinned, "hex"), line.subarray(4), Buffer.from(body))) throw new Error("trust root not signed");
const root = JSON.parse(body);

const judge = (v) => {
  try { return verify(root, v.subject, v.stream, Buffer.from(v.payload, "hex")); } catch (e) {
    if (!(e instanceof Refused)) throw e;
    return `${e.error} ${e.code}`;
  }
};
const wrong = [
  ...vectors.messages.good.map((v) => [v.name, judge(v), `${v.leaf} ${v.statement_sha256} ${v.event_tags}`]),
  ...vectors.messages.bad.map((v) => [v.name, judge(v), `${v.error} ${v.code.replace("_CANONICAL", "")}`]),
].filter(([, got, wanted]) => got !== wanted);
for (const [name, got, wanted] of wrong) console.log(`${name}: got ${got}, wanted ${wanted}`);
if (wrong.length === 0) console.log(`${vectors.messages.good.length} accepted, ${vectors.messages.bad.length} refused`);
process.exit(wrong.length ? 1 : 0);
