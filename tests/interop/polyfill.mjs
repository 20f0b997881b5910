// js-libp2p 3 is made for Node.js 22; this is the one thing that 20 lacks of what it uses.
if (Promise.withResolvers === undefined) {
  Promise.withResolvers = () => {
    const parts = {}
    parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }))
    return parts
  }
}
