// The platform's own form: each export is a function, with its settings beside it.

let calls = 0; // survives between calls of one instance, and is never seen by another

exports.hello = {
  func: async (req, res) => {
    calls += 1;
    console.log('greeting', req.query.name ?? 'nobody', 'call', calls);
    res.send(`Hello, ${req.query.name ?? 'world'}!`);
  },
  config: { timeout: '10s', memory: '128MiB', maxInstances: 5 },
};

exports.echo = {
  func: (req, res) => res.json({ method: req.method, path: req.path, query: req.query, body: req.body }),
  config: { timeout: 10_000, concurrency: 10 },
};
