const firebase = require('firebase/app');

interface AuthParams {
  idToken?: string;
}

/**
 * Decides whether a user may start a chat session. The client sends a Firebase ID token in `authParams`.
 *
 * A real app hands the token to its backend or to `firebase.auth().signInWithCustomToken(…)`; this example only reads it, so
 * that it runs without a Firebase project and without a network.
 */
async function handleEvent(event: UserAttemptedStartSessionEvent, context: Context) {
  const { idToken } = (event.authParams ?? {}) as AuthParams;
  if (!idToken) {
    return context.deny('sign in first', { code: 'TOKEN_MISSING' });
  }
  const claims = claimsOf(idToken);
  if (claims.user_id !== event.username) {
    return context.deny('this token is for somebody else', { code: 'TOKEN_MISMATCH' });
  }
  console.log(`${event.username} signs in through ${firebase.app().options.authDomain}`);
  return { displayName: claims.name ?? event.username, workerStartedAt: context.initialization.startedAt };
}

function claimsOf(idToken: string): { user_id?: string; name?: string } {
  const [, payload] = idToken.split('.');
  return JSON.parse(Buffer.from(payload, 'base64url').toString());
}
