/**
 * Runs after a message was sent. Nobody waits for it; if it throws, it is tried again.
 *
 * `context.ChatKitty` is the platform's SDK. It needs CHATKITTY_CLIENT_ID and CHATKITTY_CLIENT_SECRET in the environment:
 *
 *     await context.ChatKitty.Channels.sendChannelMessage(event.channel.id, { type: 'TEXT', body: 'Hello!' });
 */
export async function handleEvent(event: UserSentMessageEvent, context: Context) {
  const { user, message } = event;
  const text = message.type === 'TEXT' ? message.body : 'a file';
  console.log(`attempt ${context.invocation.attempt}: ${user.name} wrote ${text}`);
  return { seen: message.id };
}
