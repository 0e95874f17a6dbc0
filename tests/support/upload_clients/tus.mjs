// One file by tus-js-client: node tus.mjs '{"endpoint", "file", "chunkSize"?, "deferred"?, "withCreation"?, "metadata"?}'
// Prints {"url", "retries"} when it is whole.
import { createReadStream, statSync } from 'node:fs'
import { PassThrough } from 'node:stream'
import * as tus from 'tus-js-client'

const order = JSON.parse(process.argv[2])
let retries = 0
const file = createReadStream(order.file)
const source = order.deferred ? file.pipe(new PassThrough()) : file // of a file it asks the size
const upload = new tus.Upload(source, {
  endpoint: order.endpoint,
  metadata: order.metadata ?? {},
  chunkSize: order.chunkSize ?? Number.POSITIVE_INFINITY,
  uploadSize: order.deferred ? null : statSync(order.file).size,
  uploadLengthDeferred: order.deferred ?? false,
  uploadDataDuringCreation: order.withCreation ?? false,
  retryDelays: Array(500).fill(5),
  onShouldRetry(error) {
    retries += 1
    const status = error.originalResponse?.getStatus() ?? 0
    return status < 400 || status === 409 || status === 423 || status >= 500
  },
  onError(error) {
    console.error(String(error))
    process.exit(1)
  },
  onSuccess() {
    console.log(JSON.stringify({ url: upload.url, retries }))
  },
})
upload.start()
