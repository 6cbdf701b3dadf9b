/**
 * Decides whether a user may start a chat session. The platform waits for the answer: what is returned is the result, and
 * `context.deny()`, or any error, keeps the user out.
 */
export async function handleEvent(event: UserAttemptedStartSessionEvent, context: Context) {
  if (!event.username.trim()) {
    context.deny('a user name is needed', { code: 'NO_USERNAME' });
  }
  console.log(`${event.username} starts a session`);
  return { username: event.username, workerStartedAt: context.initialization.startedAt };
}
