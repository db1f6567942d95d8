'use strict';
// Express looks for a view's engine (`ejs`, `pug`, …) beside itself. Ours lies in the runtime image, the
// engine in the project, so it is looked up from there. Used by `signature/express.js`.

const { createRequire } = require('node:module');
const path = require('node:path');
const View = require('express/lib/view');

/** Express's `View`, for a project. */
function projectView(root) {
  const requireFromProject = createRequire(path.join(root, 'package.json'));
  return class ProjectView extends View {
    constructor(name, options) {
      const extension = path.extname(name) || (options.defaultEngine ? `.${options.defaultEngine.replace(/^\./, '')}` : '');
      if (extension && !options.engines[extension]) {
        options.engines[extension] = requireFromProject(extension.slice(1)).__express;
      }
      super(name, options);
    }
  };
}

module.exports = { projectView };
