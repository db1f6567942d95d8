node -e 'const [major] = process.versions.node.split("."); if (major < 24) { console.error(`node is ${process.version}`); process.exit(1); }'
npm ci --omit=dev --ignore-scripts --no-audit --no-fund --no-update-notifier
