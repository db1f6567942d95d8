'use strict';
// Express resolves a view engine (`ejs`, `pug`, …) relative to itself. Our Express is in the
// runtime image and the engine is in the project, so it is resolved from the project. Used by
// `signature/express.js`.

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
