/** Would push to the user's devices; runs after the fact, and is retried if it throws. */
export async function handleEvent(event: UserReceivedNotificationEvent, context: Context) {
  if (event.userHasActiveSession) {
    console.log('the user is online: no push');
    return { pushed: false };
  }
  const { title, body } = event.notification;
  console.log(`attempt ${context.invocation.attempt}: push to ${event.user.name}: ${title} – ${body}`);
  return { pushed: true };
}
