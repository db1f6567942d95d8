'use strict';
// The wrapper under test and the fixtures of its language:
//
//   EPSILON_WRAPPER='["node","/epsilon/wrapper/main.js"]'   its command line, as JSON
//   EPSILON_LANGUAGE=node                                   the folder below fixtures/
//
// `fixtures/LANGUAGE/language.json` has what differs by language beside the sources: see ../README.md.

const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { wrapper } = require('./wrapper.js');

const FOLDER = path.join(__dirname, '../fixtures', process.env.EPSILON_LANGUAGE ?? 'node');
const language = JSON.parse(fs.readFileSync(path.join(FOLDER, 'language.json'), 'utf8'));
const command = JSON.parse(process.env.EPSILON_WRAPPER ?? 'null') ?? [process.execPath, path.join(__dirname, '../../node/main.js')];
const driver = wrapper({ command, entry: language.entry });

/** The files of a project with this fixture as its entry. */
const files = (fixture) => ({ [language.entry]: fs.readFileSync(path.join(FOLDER, fixture + path.extname(language.entry)), 'utf8') });

/** A pattern for what the language itself words: the text of an error, with its stack. */
function shown(name) {
  if (language.shown[name] === undefined) throw new Error(`language.json has no \`shown.${name}\``);
  return new RegExp(language.shown[name]);
}

/** A test of something that a language may lack; `language.json` names it then. */
const testIf = (feature) => (name, body) => test(name, { skip: language.lacks.includes(feature) && `${feature}: not in this language` }, body);

module.exports = {
  language, files, shown, testIf,
  launch: driver.launch,
  project: driver.project,
  /** A process that waits for `/init`, with a fixture; without one its folder is empty. */
  waiting: (t, fixture) => driver.waiting(t, fixture ? files(fixture) : {}),
  /** A process that serves the export `f` of a fixture. */
  ready: (t, fixture, spec) => driver.ready(t, files(fixture), { export: 'f', ...spec }),
};
