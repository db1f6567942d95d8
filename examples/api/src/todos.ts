// A small JSON API in TypeScript, which Node runs as it is: types are stripped, nothing is built.
// Items live in the instance; `maxInstances: 1` keeps them in one place for this example's sake.

import { nanoid } from 'nanoid';
import { isTodo, type Todo } from './todo.ts';

const items = new Map<string, Todo>();

export const todos = {
  func: async (req: any, res: any): Promise<void> => {
    const id: string = req.path.slice(1);
    switch (req.method) {
      case 'GET':
        if (id === '') return void res.json([...items.values()]);
        return void (items.has(id) ? res.json(items.get(id)) : res.sendStatus(404));
      case 'POST': {
        if (!isTodo(req.body)) return void res.status(400).json({ error: 'send {"title": "…"}' });
        const item = { id: nanoid(8), title: req.body.title };
        items.set(item.id, item);
        return void res.status(201).location(`/${item.id}`).json(item);
      }
      case 'DELETE':
        return void res.sendStatus(items.delete(id) ? 204 : 404);
      default:
        res.set('Allow', 'GET, POST, DELETE').sendStatus(405);
    }
  },
  config: { maxInstances: 1, concurrency: 20 },
};
