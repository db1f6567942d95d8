export interface Todo {
  id: string;
  title: string;
}

/** Whether a request's body can become an item. */
export function isTodo(body: unknown): body is Pick<Todo, 'title'> {
  return typeof (body as Todo | undefined)?.title === 'string' && (body as Todo).title.trim() !== '';
}
