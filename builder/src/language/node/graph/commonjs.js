'use strict';
// Rewrites a CommonJS module as an ES module that reaches the same files, because esbuild drops
// unused exports of ES modules only. The result is never run, so it may contain code such as
// `var x0 = [value]`.
//
// Only patterns with a known meaning are rewritten: `require('literal')`, `exports.name = …`,
// `module.exports.name = …`, `module.exports = { … }`. For a module that does anything else with
// `require`, `exports`, `module` or `this` the result is null, and esbuild takes the whole module.

const acorn = require('acorn');

const OURS = new Set(['require', 'exports', 'module']);
const NAME = /^[A-Za-z_$][\w$]*$/;

/**
 * @param {string} source
 * @returns {string | null}
 */
function asModule(source) {
  try {
    const text = new Conversion(source).run();
    acorn.parse(text, { ecmaVersion: 'latest', sourceType: 'module' });
    return text;
  } catch (err) {
    if (err instanceof SyntaxError || err instanceof Unknown) return null;
    throw err;
  }
}

/** The module contains a pattern that this file does not know. */
class Unknown extends Error {}

class Conversion {
  constructor(source) {
    this.source = source;
    this.tree = acorn.parse(source, { ecmaVersion: 'latest', sourceType: 'script', allowHashBang: true });
    this.edits = [];
    this.imports = [];
    this.exports = new Map();
    this.whole = false;
    this.values = 0;
    /** Names that are assigned somewhere, so they cannot be imports. */
    this.assigned = new Set();
  }

  run() {
    const strict = this.tree.body.some((statement) => statement.directive === 'use strict');
    each(this.tree, (node) => {
      if (node.type === 'AssignmentExpression') for (const name of names(node.left)) this.assigned.add(name);
      if (node.type === 'UpdateExpression') for (const name of names(node.argument)) this.assigned.add(name);
      if (/^For(In|Of)Statement$/.test(node.type)) for (const name of names(node.left)) this.assigned.add(name);
    });
    for (const statement of this.tree.body) this.statement(statement, strict);
    if (this.whole && this.exports.size > 0) throw new Unknown();
    const exported = [...this.exports].map(([name, value]) => `${value} as ${name}`);
    return [...this.imports, this.edited(), `export { ${exported.join(', ')} };`].join('\n');
  }

  statement(statement, strict) {
    if (statement.type === 'VariableDeclaration' && this.requires(statement)) return;
    if (statement.type === 'ExpressionStatement') {
      const { expression } = statement;
      if (isEsModuleMark(expression, this.source)) return void this.replace(statement.start, statement.end, '');
      if (expression.type === 'AssignmentExpression' && this.assignment(statement, expression, strict)) return;
    }
    this.scan(statement, { strict });
  }

  /** `const a = require('./a'), { b } = require('./b');` */
  requires(statement) {
    const plain = ({ id, init }) => isRequire(init) && (
      (id.type === 'Identifier' && !this.assigned.has(id.name)) ||
      (id.type === 'ObjectPattern' && id.properties.every((one) => one.type === 'Property' && !one.computed && one.key.type === 'Identifier' && one.value.type === 'Identifier')));
    if (!statement.declarations.every(plain)) return false;
    const lines = statement.declarations.map(({ id, init }) => {
      if (id.type === 'Identifier') return void this.imports.push(`import * as ${id.name} from ${specifier(init)};`);
      const all = this.imported(init);
      return id.properties.map(({ key, value }) => `var ${value.name} = ${all}.${key.name};`).join(' ');
    });
    this.replace(statement.start, statement.end, lines.filter(Boolean).join(' '));
    return true;
  }

  /** `exports.a = …`, `module.exports.a = exports.b = …`, `module.exports = …` */
  assignment(statement, expression, strict) {
    const targets = [];
    let value = expression;
    while (value.type === 'AssignmentExpression' && value.operator === '=' && exportOf(value.left) !== null) {
      targets.push(exportOf(value.left));
      value = value.right;
    }
    if (targets.length === 0) return false;
    if (targets.includes('')) {
      if (targets.length > 1 || this.whole) throw new Unknown();
      if (value.type === 'ObjectExpression') this.object(statement, value, strict);
      else {
        this.whole = true;
        this.value(statement, value, ['default'], strict);
        this.imports.push('export { whole as default };');
      }
    } else if (value.type === 'UnaryExpression' && value.operator === 'void') {
      this.replace(statement.start, statement.end, ''); // compilers emit this before the real assignment
    } else {
      this.value(statement, value, targets, strict);
    }
    return true;
  }

  value(statement, value, targets, strict) {
    const name = this.whole ? 'whole' : this.define(targets);
    this.replace(statement.start, value.start, `var ${name} = [(`);
    this.scan(value, { strict });
    this.replace(value.end, statement.end, ')];');
  }

  object(statement, value, strict) {
    let from = statement.start;
    let named = false;
    for (const property of value.properties) {
      if (property.type === 'SpreadElement') {
        // In CommonJS a later assignment wins over an earlier name; with `export *` the explicit name would win.
        if (named || !isRequire(property.argument)) throw new Unknown();
        this.replace(from, property.end, `export * from ${specifier(property.argument)};`);
      } else {
        named = true;
        if (property.computed || property.kind !== 'init') throw new Unknown();
        const name = this.define([property.key.name ?? property.key.value]);
        const inside = property.method || property.shorthand ? property : property.value;
        this.replace(from, inside.start, `var ${name} = ${property.method ? '{' : '[('}`);
        this.scan(inside, { strict });
        this.replace(inside.end, inside.end, property.method ? '};' : ')];');
      }
      from = property.end;
    }
    this.replace(from, statement.end, '');
  }

  define(targets) {
    const value = `epsilon_x${this.values++}`;
    for (const name of targets) {
      if (typeof name !== 'string' || !NAME.test(name) || this.exports.has(name)) throw new Unknown();
      this.exports.set(name, value);
    }
    return value;
  }

  /** Visits a statement or value and hoists the `require`s that run at load time. */
  scan(node, state, parent = null, key = '') {
    switch (node.type) {
      case 'ThisExpression':
        if (!state.inClass) throw new Unknown();
        return;
      case 'WithStatement':
      case 'MetaProperty':
        throw new Unknown();
      case 'Identifier':
        if (isOnlyAName(parent, key)) return;
        if (OURS.has(node.name) || node.name === 'eval' || node.name.startsWith('epsilon_') || (node.name === 'arguments' && !state.inFunction)) throw new Unknown();
        return;
      case 'CallExpression':
        if (isRequire(node)) {
          if (node.arguments[0].value.startsWith('#')) throw new Unknown();
          if (state.later || (parent?.type === 'ExpressionStatement' && isPackage(node))) return;
          return void this.replace(node.start, node.end, this.imported(node));
        }
        if (isResolve(node)) return;
        break;
      case 'FunctionDeclaration':
        // Outside strict mode such a name is also visible outside its block.
        if (!state.strict && state.inBlock) throw new Unknown();
        state = { ...state, later: true, inFunction: true, inBlock: false };
        break;
      case 'FunctionExpression':
        state = { ...state, later: true, inFunction: true, inBlock: false };
        break;
      case 'ArrowFunctionExpression':
        state = { ...state, later: true, inBlock: false };
        break;
      case 'ClassDeclaration':
      case 'ClassExpression':
        state = { ...state, later: true, inClass: true, strict: true };
        break;
      case 'BlockStatement':
        state = { ...state, inBlock: !(parent && /Function/.test(parent.type)) };
        break;
      case 'SwitchStatement':
      case 'IfStatement':
        state = { ...state, inBlock: true };
        break;
    }
    for (const [at, child] of children(node)) this.scan(child, state, node, at);
  }

  imported(call) {
    const name = `epsilon_r${this.values++}`;
    this.imports.push(`import * as ${name} from ${specifier(call)};`);
    return name;
  }

  replace(start, end, text) {
    this.edits.push({ start, end, text });
  }

  edited() {
    let text = '';
    let from = this.source.startsWith('#!') ? this.source.indexOf('\n') : 0;
    for (const { start, end, text: replaced } of this.edits.sort((a, b) => a.start - b.start || a.end - b.end)) {
      text += this.source.slice(from, start) + replaced;
      from = end;
    }
    return text + this.source.slice(from);
  }
}

function isRequire(node) {
  return node?.type === 'CallExpression' && !node.optional && node.callee.type === 'Identifier' && node.callee.name === 'require'
    && node.arguments.length === 1 && typeof node.arguments[0].value === 'string';
}

function isResolve({ callee, arguments: [path] }) {
  return callee.type === 'MemberExpression' && !callee.computed && callee.object.name === 'require' && callee.property.name === 'resolve' && typeof path?.value === 'string';
}

/** `require('package');` alone: a package that is loaded for its side effects. */
function isPackage(call) {
  return !/^\.{0,2}\//.test(call.arguments[0].value);
}

function specifier(call) {
  return JSON.stringify(call.arguments[0].value);
}

/** `a` of `exports.a` and `module.exports.a`, '' of `module.exports`, else null. */
function exportOf(node) {
  if (node.type !== 'MemberExpression' || node.computed || node.property.type !== 'Identifier') return null;
  const { object, property: { name } } = node;
  if (object.type === 'Identifier') {
    if (object.name === 'exports') return name;
    return object.name === 'module' && name === 'exports' ? '' : null;
  }
  return exportOf(object) === '' ? name : null;
}

function isEsModuleMark(expression, source) {
  return /^Object\.defineProperty\(exports, (["'])__esModule\1, \{ value: true \}\)$/.test(source.slice(expression.start, expression.end));
}

/** A key or property name, not a variable. */
function isOnlyAName(parent, key) {
  if (parent === null) return false;
  if (parent.type === 'MemberExpression') return key === 'property' && !parent.computed;
  if (/^(Property|MethodDefinition|PropertyDefinition)$/.test(parent.type)) return key === 'key' && !parent.computed && !parent.shorthand;
  return /^(LabeledStatement|BreakStatement|ContinueStatement)$/.test(parent.type);
}

function* children(node) {
  for (const [key, value] of Object.entries(node)) {
    for (const child of Array.isArray(value) ? value : [value]) {
      if (typeof child?.type === 'string') yield [key, child];
    }
  }
}

function each(node, see) {
  see(node);
  for (const [, child] of children(node)) each(child, see);
}

/** Variables in the target of an assignment; extra names do no harm. */
function names(target) {
  const found = [];
  each(target, (node) => { if (node.type === 'Identifier') found.push(node.name); });
  return found;
}

module.exports = { asModule };
