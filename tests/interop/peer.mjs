// A js-libp2p node that is told what to do on standard input, one command a line, and says what happened in JSON
// lines on standard output. Arguments: the address of the node to talk to, then the gossip topics to subscribe to.
//
//   ping                          -> {"did":"ping","ms":..}
//   request PROTOCOL HEX          -> {"did":"request","hex":..}     one stream: write, half-close, read to the end
//   publish TOPIC HEX             -> {"did":"publish","peers":..}
//   garbage PROTOCOL HEX          -> {"did":"garbage"}              write and close, whatever becomes of it
//   quit
//
// Unasked: {"did":"connected",..} at first, {"did":"message","topic":..,"hex":..,"from":..,"signed":..} for each gossip
// message, {"did":"disconnected"} when the connection is gone.

import './polyfill.mjs'
import { createInterface } from 'node:readline'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const [target, ...topics] = process.argv.slice(2)
const address = multiaddr(target)

function say (did, fields = {}) {
  process.stdout.write(JSON.stringify({ did, ...fields }) + '\n')
}

const node = await createLibp2p({
  addresses: { listen: [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: gossipsub({ globalSignaturePolicy: 'StrictSign', allowPublishToZeroTopicPeers: true })
  }
})

const pubsub = node.services.pubsub
pubsub.addEventListener('message', ({ detail }) => {
  say('message', {
    topic: detail.topic,
    hex: Buffer.from(detail.data).toString('hex'),
    from: detail.from?.toString() ?? '',
    signed: detail.type === 'signed'
  })
})
node.addEventListener('peer:disconnect', () => say('disconnected'))
for (const topic of topics) pubsub.subscribe(topic)
const connection = await node.dial(address)
say('connected', {
  peer: connection.remotePeer.toString(),
  encryption: connection.encryption,
  muxer: connection.multiplexer
})

async function exchange (protocol, hex) {
  const stream = await connection.newStream(protocol)
  stream.send(Buffer.from(hex, 'hex'))
  await stream.close()
  const parts = []
  for await (const part of stream) parts.push(Buffer.from(part.subarray()))
  return Buffer.concat(parts).toString('hex')
}

const commands = {
  ping: async () => ({ ms: await node.services.ping.ping(address) }),
  request: async (protocol, hex) => ({ hex: await exchange(protocol, hex) }),
  publish: async (topic, hex) => ({ peers: (await pubsub.publish(topic, Buffer.from(hex, 'hex'))).recipients.length }),
  garbage: async (protocol, hex) => {
    await exchange(protocol, hex).catch(() => {})
    return {}
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...values] = line.trim().split(' ')
  if (command === 'quit') break
  try {
    say(command, await commands[command](...values))
  } catch (error) {
    say('failed', { command, error: String(error) })
  }
}
await node.stop()
process.exit(0)
