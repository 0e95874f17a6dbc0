// One file by Uppy: node uppy.mjs '{"endpoint", "file", "type"?, "chunkSize"?}'; prints {"url"} when it is whole.
import { readFileSync } from 'node:fs'
import { basename } from 'node:path'

// What of a browser Uppy asks for.
globalThis.window = globalThis
globalThis.XMLHttpRequest ??= class {}

const { default: Uppy } = await import('@uppy/core')
const { default: Tus } = await import('@uppy/tus')

const order = JSON.parse(process.argv[2])
const data = readFileSync(order.file)
data.size = data.length
const uppy = new Uppy({ autoProceed: false }).use(Tus, {
  endpoint: order.endpoint,
  chunkSize: order.chunkSize ?? Number.POSITIVE_INFINITY,
  retryDelays: Array(500).fill(5),
  storeFingerprintForResuming: false,
})
uppy.addFile({ name: basename(order.file), type: order.type ?? 'application/octet-stream', data })
const { failed, successful } = await uppy.upload()
if (failed.length > 0) {
  console.error(String(failed[0].error))
  process.exit(1)
}
console.log(JSON.stringify({ url: successful[0].uploadURL }))
