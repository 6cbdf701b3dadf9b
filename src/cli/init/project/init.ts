// Runs once per worker, before any function: connect, load, prepare. What it exports is `context.initialization`.
export const startedAt = new Date().toISOString();
