/**
 * Whether the PTX moves memory in the vectors that the sources mean.
 *
 * Nothing else notices a vector that the compiler takes apart into bytes: results, registers and spills stay the same,
 * and the kernel needs a multiple of its time.
 */
const ELEMENT_BYTES = { f16: 2, bf16: 2, f32: 4, f64: 8 }

/**
 * What moves vectors, by the name of the entry point: every one of these must occur. `only`: what of the moves through
 * the caches as used once must all be vectors, since nothing but tensors is moved so.
 */
const RULES = [
  { name: /^batch_norm_(?:stats|backward_reduce)_(?:planes|rows)_(\w+)_v(\d+)$/, kinds: ['ld'] },
  { name: /^batch_norm_(?:normalize|backward_apply)_(?:planes|rows)_(\w+)_v(\d+)$/, kinds: ['ld', 'st'], only: 'cs' },
  { name: /^(?:relu|relu_backward|binary|binary_scalar)_(?:f16|bf16|f32|f64)$/, kinds: ['ld', 'st'] },
  { name: /^fill_b\d+$/, kinds: ['st'] },
]
/** Bytes of a vector where the name does not say. */
const WIDEST = 16

/**
 * @param {Map<string, string>} texts name -> PTX
 * @returns {{ problems: string[], checked: number }} `checked` is the number of entries that were found to move vectors
 */
export function checkVectors(texts) {
  const bodies = [...texts].flatMap(([module, text]) => entryBodies(module, text))
  const byteMoves = bodies.flatMap(({ entry, moves }) =>
    moves.some(({ bits }) => bits === 8) ? [`${entry} moves single bytes of memory`] : [],
  )
  const byRule = RULES.map((rule) => bodies.filter(({ entry }) => rule.name.test(entry)))
  // A rule that matches nothing would pass for ever.
  const idle = RULES.filter((_, i) => byRule[i].length === 0).map(({ name }) => `no entry point is called ${name}`)
  const missing = RULES.flatMap((rule, i) => byRule[i].flatMap((body) => missingVectors(rule, body)))
  return { problems: [...byteMoves, ...idle, ...missing], checked: byRule.flat().length }
}

function missingVectors({ name, kinds, only }, { entry, moves }) {
  const [, dtype, length] = name.exec(entry)
  const bytes = length ? ELEMENT_BYTES[dtype] * Number(length) : WIDEST
  const whole = (move) => move.vector > 1 && move.vector * move.bits === 8 * bytes
  const has = (kind) => moves.some((move) => move.kind === kind && whole(move))
  const missing = kinds.filter((kind) => !has(kind)).map((kind) => `no ${kind}.global of ${bytes} bytes at once`)
  const apart = only && moves.some((move) => move.qualifiers.includes(only) && !whole(move))
  return [...missing, ...(apart ? [`an ld.global.${only} of less than ${bytes} bytes`] : [])].map(
    (what) => `${entry} has ${what}`,
  )
}

/** The entry points of a module, each with its instructions on global memory, and on memory of no named kind. */
function entryBodies(module, text) {
  const pieces = text.split(/^\.visible \.entry /m).slice(1)
  if (pieces.length === 0) throw new Error(`${module}.ptx has no entry points`)
  return pieces.map((piece) => ({ entry: /^\w+/.exec(piece)[0], moves: globalMoves(piece) }))
}

function globalMoves(code) {
  const found = code.matchAll(
    /\b(ld|st)((?:\.(?:volatile|relaxed|acquire|release|weak|gpu|sys|cta))*(?:\.global(?:[.:]+[a-zA-Z]\w*)*?)?)(?:\.v(\d))?\.[busf](\d+)\s/g,
  )
  return [...found].map(([, kind, qualifiers, vector, bits]) => ({
    kind,
    qualifiers: qualifiers.split('.'),
    vector: Number(vector ?? 1),
    bits: Number(bits),
  }))
}
