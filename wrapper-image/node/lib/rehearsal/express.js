'use strict';
// A typical `(req, res)` function. Only called by `../warm.js`.

exports.warm = (req, res) => {
  if (req.body === undefined) return res.set('x-warm', req.get('host')).send('warm');
  return res.status(200).json({ body: req.body, query: req.query, path: req.path });
};
