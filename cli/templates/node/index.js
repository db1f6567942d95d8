// Every export that is a function can be called over HTTP. `req` and `res` are those of Express 5.
exports.hello = async (req, res) => {
  const name = req.query.name ?? req.body?.name ?? 'world';
  console.log('greeting', name); // `epsilon logs hello` shows it
  res.json({ message: `Hello, ${name}!` });
};
