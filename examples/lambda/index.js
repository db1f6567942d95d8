// A function of AWS Lambda, unchanged: the name `handler` is enough for the platform to know. In
// epsilon.yaml it gets the name under which it is called.

exports.handler = async (event, context) => {
  const name = event.queryStringParameters?.name ?? 'world';
  const left = context.getRemainingTimeInMillis();
  return {
    statusCode: 200,
    headers: { 'content-type': 'application/json' },
    cookies: [`seen=${encodeURIComponent(name)}; Max-Age=60`],
    body: JSON.stringify({ hello: name, path: event.rawPath, request: context.awsRequestId, timeLeft: left > 0 }),
  };
};
