/** The UCI digits: 1797 handwritten digits of 8×8 pixels (data/README.md says where they come from). */
import { readFileSync } from 'node:fs'
import { gunzipSync } from 'node:zlib'

import { tensor, type Dataset, type Tensor } from 'syncbn'

const PIXELS = 64
const BRIGHTEST = 16
/** Where the file is cut: the first images train, in 179 batches of 8, the rest test. */
const TRAINING_IMAGES = 1432

/** One image and its digit. */
export interface Sample {
  image: Tensor // (1, 8, 8), 0 to 1
  label: number
}

class Digits implements Dataset<Sample> {
  readonly #rows: readonly number[][]

  constructor(rows: readonly number[][]) {
    this.#rows = rows
  }

  get length(): number {
    return this.#rows.length
  }

  get(index: number): Sample {
    const row = this.#rows[index] as number[]
    const pixels = Float32Array.from(row.slice(0, PIXELS), (value) => value / BRIGHTEST)
    return { image: tensor(pixels, { shape: [1, 8, 8] }), label: row[PIXELS] as number }
  }
}

/** Both parts of the data set. */
export function loadDigits(): { training: Dataset<Sample>; test: Dataset<Sample> } {
  const file = new URL('./data/digits.csv.gz', import.meta.url)
  const lines = gunzipSync(readFileSync(file)).toString('utf8').trim().split('\n')
  const rows = lines.map((line) => line.split(',').map(Number))
  return { training: new Digits(rows.slice(0, TRAINING_IMAGES)), test: new Digits(rows.slice(TRAINING_IMAGES)) }
}
